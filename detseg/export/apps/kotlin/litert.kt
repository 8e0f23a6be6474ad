@{ header("//") }@
//     implementation("com.google.ai.edge.litert:litert:@{ versions.litert }@")

package detseg.app

import android.graphics.Bitmap
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel

%% if detector
/** Finds objects with @{ file }@; path: where it lies in the phone's storage. Make one, and keep it. */
class Detector(path: String, threads: Int = 4) : AutoCloseable {
%% else
/** Labels pixels with @{ file }@; path: where it lies in the phone's storage. Make one, and keep it. */
class Segmenter(path: String, threads: Int = 4) : AutoCloseable {
%% endif
    private val model = CompiledModel.create(
        path,
        CompiledModel.Options(Accelerator.CPU).apply { cpuOptions = CompiledModel.CpuOptions(threads) },
    )
    private val images = model.createInputBuffer("images")
    private val outputs = // by name, not by order
        listOf(@{ names }@).associateWith { model.createOutputBuffer(it) }

%% if detector
    /** The objects in a picture, best first; `threshold` replaces that of each class. */
    fun detect(bitmap: Bitmap, threshold: Double? = null): List<Detection> {
%% else
    /** Of each pixel of a picture a place in CLASSES. */
    fun segment(bitmap: Bitmap): ByteArray {
%% endif
        val argb = IntArray(bitmap.width * bitmap.height)
        bitmap.getPixels(argb, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)
%% if uint8
        images.writeInt8(networkInput(argb, bitmap.height, bitmap.width)) // Kotlin's bytes carry uint8 as it is
%% else
        images.writeFloat(networkInput(argb, bitmap.height, bitmap.width))
%% endif
        model.run(mapOf("images" to images), outputs)
%% if detector
        return detections(
            outputs.getValue("boxes").readFloat(), outputs.getValue("scores").readFloat(),
            outputs.getValue("labels").readInt(), outputs.getValue("count").readInt()[0],
            bitmap.height, bitmap.width, threshold,
        )
%% else
        return labelMap(outputs.getValue("labels").readInt8(), bitmap.height, bitmap.width)
%% endif
    }

    override fun close() {
        (outputs.values + images).forEach { it.close() }
        model.close()
    }
}
