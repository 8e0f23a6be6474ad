// Stands in for Android's: the methods that app code calls.

package android.graphics

class Bitmap(val width: Int, val height: Int, private val argb: IntArray) {
    fun getPixels(pixels: IntArray, offset: Int, stride: Int, x: Int, y: Int, width: Int, height: Int) {
        require(listOf(offset, stride, x, y, width, height) == listOf(0, this.width, 0, 0, this.width, this.height))
        argb.copyInto(pixels)
    }
}
