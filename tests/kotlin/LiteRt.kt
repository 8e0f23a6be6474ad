// Stands in for com.google.ai.edge.litert:litert 2.3.0: the classes and methods that app code calls.

package com.google.ai.edge.litert

enum class Accelerator { CPU, GPU, NPU }

class TensorBuffer internal constructor(private val path: String, private val name: String) : AutoCloseable {
    fun writeInt8(data: ByteArray) = recorded.keep(path, data)
    fun writeFloat(data: FloatArray) = recorded.keep(path, data)
    fun readFloat(): FloatArray = recorded.floats(path, name)
    fun readInt(): IntArray = recorded.ints(path, name)
    fun readInt8(): ByteArray = recorded.bytes(path, name)
    override fun close() = Unit
}

class CompiledModel private constructor(private val path: String) : AutoCloseable {
    class CpuOptions(
        val numThreads: Int? = null, val xnnPackFlags: Int? = null, val xnnPackWeightCachePath: String? = null,
    )

    class Options(internal vararg val accelerators: Accelerator) {
        var cpuOptions: CpuOptions? = null
    }

    fun createInputBuffer(inputName: String, signature: String? = null) = TensorBuffer(path, inputName)
    fun createOutputBuffer(outputName: String, signature: String? = null) = TensorBuffer(path, outputName)

    fun run(inputs: Map<String, TensorBuffer>, outputs: Map<String, TensorBuffer>, signature: String? = null) {
        require(inputs.keys == setOf("images") && outputs.isNotEmpty())
    }

    override fun close() = Unit

    companion object {
        @JvmStatic
        fun create(filePath: String, options: Options): CompiledModel {
            require(options.accelerators.toList() == listOf(Accelerator.CPU) && options.cpuOptions?.numThreads != null)
            return CompiledModel(filePath)
        }
    }
}
