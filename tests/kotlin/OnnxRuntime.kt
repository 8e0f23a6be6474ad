// Stands in for com.microsoft.onnxruntime:onnxruntime-android 1.30.0: the classes and methods that app code calls.

package ai.onnxruntime

import java.nio.ByteBuffer
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.util.Optional

enum class OnnxJavaType { FLOAT, UINT8, INT8, INT32 }

interface OnnxValue : AutoCloseable

class OnnxTensor internal constructor(
    private val path: String, private val name: String, internal val keep: (String) -> Unit,
) : OnnxValue {
    val floatBuffer: FloatBuffer get() = recorded.output(path, name).asFloatBuffer()
    val intBuffer: IntBuffer get() = recorded.output(path, name).asIntBuffer()
    val byteBuffer: ByteBuffer get() = recorded.output(path, name)
    override fun close() = Unit

    companion object {
        @JvmStatic
        fun createTensor(env: OrtEnvironment, data: ByteBuffer, shape: LongArray, type: OnnxJavaType): OnnxTensor {
            require(type == OnnxJavaType.UINT8 && shape.reduce(Long::times) == data.remaining().toLong())
            return OnnxTensor("", "") { recorded.keep(it, data.array()) }
        }

        @JvmStatic
        fun createTensor(env: OrtEnvironment, data: FloatBuffer, shape: LongArray): OnnxTensor {
            require(shape.reduce(Long::times) == data.remaining().toLong())
            return OnnxTensor("", "") { recorded.keep(it, data.array()) }
        }
    }
}

class OrtEnvironment private constructor() {
    fun createSession(modelPath: String, options: OrtSession.SessionOptions) = OrtSession(modelPath)

    companion object {
        @JvmStatic
        fun getEnvironment() = OrtEnvironment()
    }
}

class OrtSession internal constructor(private val path: String) : AutoCloseable {
    class SessionOptions {
        fun setIntraOpNumThreads(numThreads: Int) = require(numThreads > 0)
    }

    class Result internal constructor(private val path: String) : AutoCloseable {
        fun get(key: String): Optional<OnnxValue> = Optional.of(OnnxTensor(path, key) {})
        override fun close() = Unit
    }

    fun run(inputs: Map<String, OnnxTensor>): Result {
        inputs.getValue("images").keep(path)
        return Result(path)
    }

    override fun close() = Unit
}
