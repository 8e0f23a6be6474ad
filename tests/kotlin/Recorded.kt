// What every stand-in does: it keeps the input, and gives the outputs that the real runtime gave to Python.

package recorded

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

fun keep(path: String, input: ByteArray) = File("$path.images").writeBytes(input)

fun keep(path: String, input: FloatArray) {
    val bytes = ByteBuffer.allocate(4 * input.size).order(ByteOrder.LITTLE_ENDIAN)
    bytes.asFloatBuffer().put(input)
    keep(path, bytes.array())
}

fun output(path: String, name: String): ByteBuffer =
    ByteBuffer.wrap(File("$path.$name").readBytes()).order(ByteOrder.LITTLE_ENDIAN)

fun bytes(path: String, name: String) = output(path, name).array()

fun floats(path: String, name: String) =
    output(path, name).asFloatBuffer().let { FloatArray(it.remaining()).also { values -> it.get(values) } }

fun ints(path: String, name: String) =
    output(path, name).asIntBuffer().let { IntArray(it.remaining()).also { values -> it.get(values) } }
