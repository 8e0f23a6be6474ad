@{ header("//") }@
//     implementation("com.microsoft.onnxruntime:onnxruntime-android:@{ versions["onnxruntime-android"] }@")

package detseg.app

%% if uint8
import ai.onnxruntime.OnnxJavaType
%% endif
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.graphics.Bitmap
import java.nio.@{ "Byte" if uint8 else "Float" }@Buffer

%% if detector
/** Finds objects with @{ file }@; path: where it lies in the phone's storage. Make one, and keep it. */
class Detector(path: String, threads: Int = 4) : AutoCloseable {
%% else
/** Labels pixels with @{ file }@; path: where it lies in the phone's storage. Make one, and keep it. */
class Segmenter(path: String, threads: Int = 4) : AutoCloseable {
%% endif
    private val environment = OrtEnvironment.getEnvironment()
    private val session = environment.createSession(
        path, OrtSession.SessionOptions().apply { setIntraOpNumThreads(threads) },
    )

%% if detector
    /** The objects in a picture, best first; `threshold` replaces that of each class. */
    fun detect(bitmap: Bitmap, threshold: Double? = null): List<Detection> {
%% else
    /** Of each pixel of a picture a place in CLASSES. */
    fun segment(bitmap: Bitmap): ByteArray {
%% endif
        val argb = IntArray(bitmap.width * bitmap.height)
        bitmap.getPixels(argb, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)
        val input = networkInput(argb, bitmap.height, bitmap.width)
        val shape = longArrayOf(@{ shape|join(", ") }@)
%% if uint8
        OnnxTensor.createTensor(environment, ByteBuffer.wrap(input), shape, OnnxJavaType.UINT8).use { images ->
%% else
        OnnxTensor.createTensor(environment, FloatBuffer.wrap(input), shape).use { images ->
%% endif
            session.run(mapOf("images" to images)).use { outputs ->
                fun tensor(name: String) = outputs.get(name).get() as OnnxTensor // by name, not by order
%% if detector
                fun floats(name: String) = tensor(name).floatBuffer.let { FloatArray(it.remaining()).also(it::get) }
                fun ints(name: String) = tensor(name).intBuffer.let { IntArray(it.remaining()).also(it::get) }
                return detections(
                    floats("boxes"), floats("scores"), ints("labels"), ints("count")[0],
                    bitmap.height, bitmap.width, threshold,
                )
%% else
                val labels = tensor("labels").byteBuffer
                return labelMap(ByteArray(labels.remaining()).also(labels::get), bitmap.height, bitmap.width)
%% endif
            }
        }
    }

    override fun close() = session.close()
}
