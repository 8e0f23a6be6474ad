@{ header("//") }@
//     implementation("org.pytorch:executorch-android:@{ versions.executorch }@")

package detseg.app

import android.graphics.Bitmap
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

%% if detector
/** Finds objects with @{ file }@; path: where it lies in the phone's storage. Make one, and keep it. */
class Detector(path: String, threads: Int = 4) : AutoCloseable {
%% else
/** Labels pixels with @{ file }@; path: where it lies in the phone's storage. Make one, and keep it. */
class Segmenter(path: String, threads: Int = 4) : AutoCloseable {
%% endif
    private val module = Module.load(path, Module.LOAD_MODE_MMAP, threads)

%% if detector
    /** The objects in a picture, best first; `threshold` replaces that of each class. */
    fun detect(bitmap: Bitmap, threshold: Double? = null): List<Detection> {
%% else
    /** Of each pixel of a picture a place in CLASSES. */
    fun segment(bitmap: Bitmap): ByteArray {
%% endif
        val argb = IntArray(bitmap.width * bitmap.height)
        bitmap.getPixels(argb, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)
        val images = Tensor.fromBlob@{ "Unsigned" if uint8 }@(
            networkInput(argb, bitmap.height, bitmap.width), longArrayOf(@{ shape|join(", ") }@),
        )
        val outputs = module.forward(EValue.from(images)) // without names: in the order of the file's manifest
%% if detector
        return detections(
            outputs[@{ outputs.boxes }@].toTensor().dataAsFloatArray, outputs[@{ outputs.scores }@].toTensor().dataAsFloatArray,
            outputs[@{ outputs.labels }@].toTensor().dataAsIntArray, outputs[@{ outputs.count }@].toTensor().dataAsIntArray[0],
            bitmap.height, bitmap.width, threshold,
        )
%% else
        return labelMap(outputs[@{ outputs.labels }@].toTensor().dataAsUnsignedByteArray, bitmap.height, bitmap.width)
%% endif
    }

    override fun close() = module.destroy()
}
