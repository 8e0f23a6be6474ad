// Stands in for org.pytorch:executorch-android 1.5.1: the classes and methods that app code calls.

package org.pytorch.executorch

import java.io.File

class Tensor internal constructor(private val path: String, private val name: String, internal val keep: (String) -> Unit) {
    val dataAsFloatArray: FloatArray get() = recorded.floats(path, name)
    val dataAsIntArray: IntArray get() = recorded.ints(path, name)
    val dataAsUnsignedByteArray: ByteArray get() = recorded.bytes(path, name)

    companion object {
        @JvmStatic
        fun fromBlobUnsigned(data: ByteArray, shape: LongArray): Tensor {
            require(shape.reduce(Long::times) == data.size.toLong())
            return Tensor("", "") { recorded.keep(it, data) }
        }

        @JvmStatic
        fun fromBlob(data: FloatArray, shape: LongArray): Tensor {
            require(shape.reduce(Long::times) == data.size.toLong())
            return Tensor("", "") { recorded.keep(it, data) }
        }
    }
}

class EValue private constructor(private val tensor: Tensor) {
    fun toTensor() = tensor

    companion object {
        @JvmStatic
        fun from(tensor: Tensor) = EValue(tensor)
    }
}

class Module private constructor(private val path: String) {
    fun forward(vararg inputs: EValue): Array<EValue> {
        inputs.single().toTensor().keep(path)
        val names = File("$path.order").readText().split(" ")
        return Array(names.size) { EValue.from(Tensor(path, names[it]) {}) }
    }

    fun destroy() = Unit

    companion object {
        const val LOAD_MODE_MMAP = 1

        @JvmStatic
        fun load(modelPath: String?, loadMode: Int = 0, numThreads: Int = 0) = Module(modelPath!!)
    }
}
