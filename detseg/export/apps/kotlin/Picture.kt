@{ header("//") }@
// A picture to what the file takes, and what it gives to the picture's own pixels. Knows nothing of Android and of the
// runtime: a picture is what Bitmap.getPixels gives.

package detseg.app

import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min

%% if detector
/** name; the id in the training data; a colour for pictures, opaque ARGB; the score from which it is shown. */
class ClassInfo(val name: String, val id: Int, val colour: Int, val threshold: Double)
%% else
/** name; the id in the training data; a colour for pictures, opaque ARGB. */
class ClassInfo(val name: String, val id: Int, val colour: Int)
%% endif

/** In the order of the labels. */
val CLASSES = listOf(
%% for class in classes
    ClassInfo(@{ class.name|literal("kotlin") }@, @{ class.id }@, 0xFF@{ class.hex }@.toInt()@{ ", " ~ class.threshold if detector }@),
%% endfor
)

const val HEIGHT = @{ height }@ // of the file's input
const val WIDTH = @{ width }@
%% if not stretch
private val FILL = intArrayOf(@{ fill|join(", ") }@) // the colour of the bars
%% endif

/** Where a picture lies in the input: input = picture * scale + offset. */
class Placement(val top: Int, val left: Int, val height: Int, val width: Int, val scaleY: Double, val scaleX: Double)

%% if stretch
/** Everywhere: each axis is scaled on its own. */
fun place(height: Int, width: Int) =
    Placement(0, 0, HEIGHT, WIDTH, HEIGHT.toDouble() / height, WIDTH.toDouble() / width)
%% else
/** As large as fits, with its aspect ratio, centred between bars. */
fun place(height: Int, width: Int): Placement {
    val scale = min(HEIGHT.toDouble() / height, WIDTH.toDouble() / width)
    val innerHeight = max(1, Math.rint(height * scale).toInt())
    val innerWidth = max(1, Math.rint(width * scale).toInt())
    return Placement(
        (HEIGHT - innerHeight) / 2, (WIDTH - innerWidth) / 2, innerHeight, innerWidth,
        innerHeight.toDouble() / height, innerWidth.toDouble() / width,
    )
}
%% endif

/** The two pixels along an axis that a place of the input lies between, and how near it is to the second. */
private class Neighbours(val first: Int, val second: Int, val weight: Float)

private fun neighbours(from: Int, to: Int) = Array(to) { k ->
%% if points
    val position = k * (from.toFloat() / to) // pixels are points, no antialias: TensorFlow's first bilinear kernel
%% elif uint8
    val position = ((k + 0.5) * (from.toDouble() / to) - 0.5).toFloat() // half-pixel centres, no antialias
%% else
    val position = (k + 0.5f) * (from.toFloat() / to) - 0.5f // half-pixel centres, no antialias
%% endif
    val first = floor(position).toInt()
    when {
        first < 0 -> Neighbours(0, 0, 0f)
        first >= from - 1 -> Neighbours(from - 1, from - 1, 0f)
        else -> Neighbours(first, first + 1, position - first)
    }
}

/**
 * @{ given }@
 *
 * argb: the picture as it is seen (the camera's EXIF orientation is applied), row by row from the top left.
 */
fun networkInput(argb: IntArray, height: Int, width: Int): @{ "ByteArray" if uint8 else "FloatArray" }@ {
    val placed = place(height, width)
    val rows = neighbours(height, placed.height)
    val columns = neighbours(width, placed.width)
%% if stretch
    val input = @{ "ByteArray" if uint8 else "FloatArray" }@(HEIGHT * WIDTH * 3)
%% else
%% set colour = "k % 3" if nhwc else "k / (HEIGHT * WIDTH)"
    val input = @{ "ByteArray" if uint8 else "FloatArray" }@(HEIGHT * WIDTH * 3) { k ->
        FILL[@{ colour }@].to@{ "Byte" if uint8 else "Float" }@()
    }
%% endif
    for (y in 0 until placed.height) {
        val above = rows[y].first * width
        val below = rows[y].second * width
        val wy = rows[y].weight
        for (x in 0 until placed.width) {
            val column = columns[x]
            val wx = column.weight
            for (c in 0 until 3) { // red, green, blue
                val shift = 16 - 8 * c
                fun value(at: Int) = ((argb[at] shr shift) and 0xFF).toFloat()
                val upper = value(above + column.first) * (1 - wx) + value(above + column.second) * wx
                val lower = value(below + column.first) * (1 - wx) + value(below + column.second) * wx
                val value = upper * (1 - wy) + lower * wy
                val pixel = (placed.top + y) * WIDTH + placed.left + x
                input[@{ "pixel * 3 + c" if nhwc else "c * HEIGHT * WIDTH + pixel" }@] = @{ "Math.rint(value.toDouble()).toInt().toByte()" if uint8 else "value" }@
            }
        }
    }
    return input
}
%% if detector

/** An object; its box is in the picture's own pixels, and its label a place in CLASSES. */
data class Detection(
    val left: Float, val top: Float, val right: Float, val bottom: Float, val score: Float, val label: Int,
) {
    val name get() = CLASSES[label].name
}

/**
 * What the file gives for a picture. It is suppressed and sorted already: of the first `count` rows those are kept that
 * reach the threshold of their class, or `threshold` where it is given.
 */
fun detections(
    boxes: FloatArray, scores: FloatArray, labels: IntArray, count: Int, height: Int, width: Int, threshold: Double?,
): List<Detection> {
    val placed = place(height, width)
    fun x(value: Float) = ((value - placed.left) / placed.scaleX.toFloat()).coerceIn(0f, width.toFloat())
    fun y(value: Float) = ((value - placed.top) / placed.scaleY.toFloat()).coerceIn(0f, height.toFloat())
    return (0 until count).filter { scores[it] >= (threshold ?: CLASSES[labels[it]].threshold) }.map { k ->
        val (left, top, right, bottom) = boxes.slice(4 * k until 4 * k + 4)
        Detection(x(left), y(top), x(right), y(bottom), scores[k], labels[k])
    }
}
%% else

/** The label map that the file gives, at the picture's own size: of each pixel a place in CLASSES. */
fun labelMap(labels: ByteArray, height: Int, width: Int): ByteArray {
    val placed = place(height, width)
    val columns = IntArray(width) { ((it + 0.5) * placed.scaleX + placed.left).toInt() }
    val map = ByteArray(height * width)
    for (y in 0 until height) {
        val row = ((y + 0.5) * placed.scaleY + placed.top).toInt() * WIDTH
        for (x in 0 until width) map[y * width + x] = labels[row + columns[x]]
    }
    return map
}

/** A label map in the colours of its classes, for Bitmap.createBitmap. */
fun coloured(map: ByteArray) = IntArray(map.size) { CLASSES[map[it].toInt() and 0xFF].colour }
%% endif
