@{ header("//") }@
// Drag the .mlpackage into the Xcode project, which compiles it into the app: no package to add, iOS 17 or macOS 14.

import CoreGraphics
import CoreML
import CoreVideo
import Foundation
import ImageIO

struct ClassInfo {
    let name: String
    let id: Int  // what the training data call it
    let colour: (red: UInt8, green: UInt8, blue: UInt8)
%% if detector
    let threshold: Double  // the score from which it is shown
%% endif
}

/// In the order of the labels.
let classes: [ClassInfo] = [
%% for class in classes
    ClassInfo(name: @{ class.name|literal("swift") }@, id: @{ class.id }@, colour: (@{ class.colour|join(", ") }@)@{ ", threshold: " ~ class.threshold if detector }@),
%% endfor
]

let inputHeight = @{ height }@
let inputWidth = @{ width }@

enum ModelError: Error {
    case noPicture, noMemory
    case noOutput(String)
}

/// RGBX, row by row from the top left, as the picture is seen.
struct Picture {
    let height: Int
    let width: Int
    var pixels: [UInt8]

    /// The pixels of an upright image, without a conversion of their colours.
    init(_ image: CGImage) throws {
        height = image.height
        width = image.width
        pixels = [UInt8](repeating: 0, count: image.height * image.width * 4)
        let own = image.colorSpace.flatMap { $0.model == .rgb ? $0 : nil }
        let drawn = pixels.withUnsafeMutableBytes { bytes -> Bool in
            guard let context = CGContext(
                data: bytes.baseAddress, width: image.width, height: image.height, bitsPerComponent: 8,
                bytesPerRow: image.width * 4, space: own ?? CGColorSpaceCreateDeviceRGB(),
                bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
            else { return false }
            context.draw(image, in: CGRect(x: 0, y: 0, width: image.width, height: image.height))
            return true
        }
        if !drawn { throw ModelError.noMemory }
    }

    /// An image file, turned as its EXIF orientation says.
    init(contentsOf url: URL) throws {
        guard let source = CGImageSourceCreateWithURL(url as CFURL, nil),
            let properties = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any],
            let height = properties[kCGImagePropertyPixelHeight] as? Int,
            let width = properties[kCGImagePropertyPixelWidth] as? Int,
            let image = CGImageSourceCreateThumbnailAtIndex(source, 0, [
                kCGImageSourceCreateThumbnailFromImageAlways: true, kCGImageSourceCreateThumbnailWithTransform: true,
                kCGImageSourceThumbnailMaxPixelSize: max(height, width),
            ] as [CFString: Any] as CFDictionary)
        else { throw ModelError.noPicture }
        try self.init(image)
    }
}

/// Where a picture lies in the input: input = picture * scale + offset.
struct Placement {
    let top: Int, left: Int, height: Int, width: Int
    let scaleY: Double, scaleX: Double

%% if stretch
    /// Everywhere: each axis is scaled on its own.
    init(height: Int, width: Int) {
        (top, left, self.height, self.width) = (0, 0, inputHeight, inputWidth)
        (scaleY, scaleX) = (Double(inputHeight) / Double(height), Double(inputWidth) / Double(width))
    }
%% else
    /// As large as fits, with its aspect ratio, centred between bars.
    init(height: Int, width: Int) {
        let scale = min(Double(inputHeight) / Double(height), Double(inputWidth) / Double(width))
        let innerHeight = max(1, Int((Double(height) * scale).rounded(.toNearestOrEven)))
        let innerWidth = max(1, Int((Double(width) * scale).rounded(.toNearestOrEven)))
        (top, left) = ((inputHeight - innerHeight) / 2, (inputWidth - innerWidth) / 2)
        (self.height, self.width) = (innerHeight, innerWidth)
        (scaleY, scaleX) = (Double(innerHeight) / Double(height), Double(innerWidth) / Double(width))
    }
%% endif
}

/// For each place along an axis of the input the two pixels it lies between, and how near it is to the second.
private func neighbours(from: Int, to: Int) -> [(first: Int, second: Int, weight: Float)] {
    (0..<to).map { k in
%% if points
        // Pixels are points, no antialias: TensorFlow's first bilinear kernel.
        let position = Float(k) * (Float(from) / Float(to))
%% elif uint8
        let position = Float((Double(k) + 0.5) * (Double(from) / Double(to)) - 0.5)  // half-pixel centres, no antialias
%% else
        let position = (Float(k) + 0.5) * (Float(from) / Float(to)) - 0.5  // half-pixel centres, no antialias
%% endif
        let first = Int(position.rounded(.down))
        if first < 0 { return (0, 0, 0) }
        if first >= from - 1 { return (from - 1, from - 1, 0) }
        return (first, first + 1, position - Float(first))
    }
}

/// The picture resized: `set` hears the row, the column and the red, green and blue of every pixel that it covers.
private func resize(_ picture: Picture, set: (Int, Int, (Float, Float, Float)) -> Void) {
    let placed = Placement(height: picture.height, width: picture.width)
    let rows = neighbours(from: picture.height, to: placed.height)
    let columns = neighbours(from: picture.width, to: placed.width)
    picture.pixels.withUnsafeBufferPointer { pixels in
        for y in 0..<placed.height {
            let above = rows[y].first * picture.width, below = rows[y].second * picture.width, wy = rows[y].weight
            for x in 0..<placed.width {
                let (first, second, wx) = columns[x]
                func along(_ row: Int, _ c: Int) -> Float {
                    Float(pixels[(row + first) * 4 + c]) * (1 - wx) + Float(pixels[(row + second) * 4 + c]) * wx
                }
                func value(_ c: Int) -> Float { along(above, c) * (1 - wy) + along(below, c) * wy }
                set(placed.top + y, placed.left + x, (value(0), value(1), value(2)))
            }
        }
    }
}

%% if uint8
/// @{ given }@
/// As an image of Core ML, which reads red, green and blue of it.
func networkInput(_ picture: Picture) throws -> MLFeatureValue {
    var made: CVPixelBuffer?
    CVPixelBufferCreate(
        kCFAllocatorDefault, inputWidth, inputHeight, kCVPixelFormatType_32BGRA,
        [kCVPixelBufferIOSurfacePropertiesKey as String: [String: Any]()] as CFDictionary, &made)
    guard let buffer = made else { throw ModelError.noMemory }
    CVPixelBufferLockBaseAddress(buffer, [])
    defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
    guard let base = CVPixelBufferGetBaseAddress(buffer) else { throw ModelError.noMemory }
    let bytes = base.assumingMemoryBound(to: UInt8.self)
    let stride = CVPixelBufferGetBytesPerRow(buffer)
    func write(_ y: Int, _ x: Int, _ rgb: (Float, Float, Float)) {
        let at = y * stride + x * 4
        bytes[at] = UInt8(rgb.2.rounded(.toNearestOrEven))
        bytes[at + 1] = UInt8(rgb.1.rounded(.toNearestOrEven))
        bytes[at + 2] = UInt8(rgb.0.rounded(.toNearestOrEven))
        bytes[at + 3] = 255
    }
%% if not stretch
    for y in 0..<inputHeight {
        for x in 0..<inputWidth { write(y, x, (@{ fill|join(", ") }@)) }  // the colour of the bars
    }
%% endif
    resize(picture, set: write)
    return MLFeatureValue(pixelBuffer: buffer)
}
%% else
/// @{ given }@
func networkInput(_ picture: Picture) throws -> MLFeatureValue {
    let plane = inputHeight * inputWidth
%% if stretch
    var input = [Float](repeating: 0, count: 3 * plane)
%% else
    let fill: [Float] = [@{ fill|join(", ") }@]  // the colour of the bars
    var input = fill.flatMap { [Float](repeating: $0, count: plane) }
%% endif
    resize(picture) { y, x, rgb in
        let pixel = y * inputWidth + x
        (input[pixel], input[plane + pixel], input[2 * plane + pixel]) = rgb
    }
    let shaped = MLShapedArray<Float>(scalars: input, shape: [1, 3, inputHeight, inputWidth])
    return MLFeatureValue(multiArray: MLMultiArray(shaped))
}
%% endif

/// The values of an output, read by its name; half precision becomes single.
private func values<T: MLShapedArrayScalar>(_ outputs: MLFeatureProvider, _ name: String) throws -> [T] {
    guard let array = outputs.featureValue(for: name)?.multiArrayValue else { throw ModelError.noOutput(name) }
    return MLShapedArray<T>(converting: array).scalars
}

%% if detector
/// An object; its box is in the picture's own pixels, and its label a place in `classes`.
struct Detection {
    let box: CGRect
    let score: Float
    let label: Int
    var name: String { classes[label].name }
}

/// Finds objects. Make one, and keep it: loading takes longer than a picture.
final class Detector {
    private let model: MLModel

    /// url: the compiled model, `Bundle.main.url(forResource: "@{ stem }@", withExtension: "mlmodelc")`.
    init(contentsOf url: URL, configuration: MLModelConfiguration = MLModelConfiguration()) throws {
        model = try MLModel(contentsOf: url, configuration: configuration)
    }

    /// The objects in a picture, best first; `threshold` replaces that of each class. They are suppressed already:
    /// only the first `count` rows are read.
    func detect(_ picture: Picture, threshold: Double? = nil) throws -> [Detection] {
        let images = try MLDictionaryFeatureProvider(dictionary: ["images": networkInput(picture)])
        let outputs = try model.prediction(from: images)
        let boxes: [Float] = try values(outputs, "boxes"), scores: [Float] = try values(outputs, "scores")
        let labels: [Int32] = try values(outputs, "labels"), count: [Int32] = try values(outputs, "count")
        let placed = Placement(height: picture.height, width: picture.width)
        func x(_ value: Float) -> CGFloat {
            CGFloat(min(max((value - Float(placed.left)) / Float(placed.scaleX), 0), Float(picture.width)))
        }
        func y(_ value: Float) -> CGFloat {
            CGFloat(min(max((value - Float(placed.top)) / Float(placed.scaleY), 0), Float(picture.height)))
        }
        let sure = (0..<Int(count[0])).filter { k in
            Double(scores[k]) >= (threshold ?? classes[Int(labels[k])].threshold)
        }
        return sure.map { k in
            let (left, top) = (x(boxes[4 * k]), y(boxes[4 * k + 1]))
            let (right, bottom) = (x(boxes[4 * k + 2]), y(boxes[4 * k + 3]))
            let box = CGRect(x: left, y: top, width: right - left, height: bottom - top)
            return Detection(box: box, score: scores[k], label: Int(labels[k]))
        }
    }
}
%% else
/// Labels pixels. Make one, and keep it: loading takes longer than a picture.
final class Segmenter {
    private let model: MLModel

    /// url: the compiled model, `Bundle.main.url(forResource: "@{ stem }@", withExtension: "mlmodelc")`.
    init(contentsOf url: URL, configuration: MLModelConfiguration = MLModelConfiguration()) throws {
        model = try MLModel(contentsOf: url, configuration: configuration)
    }

    /// Of each pixel of a picture a place in `classes`, at its own size, row by row.
    func segment(_ picture: Picture) throws -> [UInt8] {
        let images = try MLDictionaryFeatureProvider(dictionary: ["images": networkInput(picture)])
        let labels: [Int32] = try values(model.prediction(from: images), "labels")  // Core ML has no bytes
        let placed = Placement(height: picture.height, width: picture.width)
        let columns = (0..<picture.width).map { Int((Double($0) + 0.5) * placed.scaleX + Double(placed.left)) }
        var map = [UInt8](repeating: 0, count: picture.height * picture.width)
        for y in 0..<picture.height {
            let row = Int((Double(y) + 0.5) * placed.scaleY + Double(placed.top)) * inputWidth
            for x in 0..<picture.width { map[y * picture.width + x] = UInt8(labels[row + columns[x]]) }
        }
        return map
    }
}

/// A label map in the colours of its classes: RGB, three bytes a pixel.
func coloured(_ map: [UInt8]) -> [UInt8] {
    map.flatMap { label -> [UInt8] in
        let colour = classes[Int(label)].colour
        return [colour.red, colour.green, colour.blue]
    }
}
%% endif
