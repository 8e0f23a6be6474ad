@{ header("//") }@
%% if detector
//     predict @{ file }@ PICTURE.ppm [THRESHOLD]
//
// prints the objects in the picture as one line of JSON: boxes in its own pixels (left, top, right, bottom), scores,
// labels and names, best first; those of at least THRESHOLD (the threshold of their class).
%% else
//     predict @{ file }@ PICTURE.ppm LABELS.pgm [COLOURS.ppm]
//
// writes the picture's label map, of each pixel a place in kClasses, and, if asked, the same in colours.
%% endif

#include <cstdio>
#include <exception>
%% if detector
#include <optional>
%% endif
#include <stdexcept>
#include <string>
#include <vector>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include "picture.h"

using executorch::aten::ScalarType;
using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::runtime::EValue;

// The values of an output. Outputs have no names here: they stand in the order of the file's manifest.
template <typename T>
const T* values(const std::vector<EValue>& outputs, size_t number, ScalarType type, ssize_t size) {
  const auto& tensor = outputs.at(number).toTensor();
  if (tensor.scalar_type() != type || tensor.numel() != size) {
    throw std::runtime_error("output " + std::to_string(number) + " is not what this program was written for");
  }
  return tensor.const_data_ptr<T>();
}

int main(int argc, char** argv) try {
%% if detector
  if (argc < 3 || argc > 4) throw std::runtime_error("usage: predict MODEL.pte PICTURE.ppm [THRESHOLD]");
%% else
  if (argc < 4 || argc > 5) throw std::runtime_error("usage: predict MODEL.pte PICTURE.ppm LABELS.pgm [COLOURS.ppm]");
%% endif
  const Picture picture = read_ppm(argv[2]);
  std::vector<Value> pixels = network_input(picture);

  Module module(argv[1]);  // once in an app: loading takes longer than a picture
  const auto images = from_blob(pixels.data(), {@{ shape|join(", ") }@}, ScalarType::@{ "Byte" if uint8 else "Float" }@);
  const auto result = module.forward(images);
  if (!result.ok()) {
    throw std::runtime_error(std::string(argv[1]) + " does not run: error " + std::to_string(int(result.error())));
  }
%% if detector
  const auto* boxes = values<float>(*result, @{ outputs.boxes }@, ScalarType::Float, kRows * 4);
  const auto* scores = values<float>(*result, @{ outputs.scores }@, ScalarType::Float, kRows);
  const auto* labels = values<int32_t>(*result, @{ outputs.labels }@, ScalarType::Int, kRows);
  const auto* count = values<int32_t>(*result, @{ outputs.count }@, ScalarType::Int, 1);
  std::optional<double> threshold;
  if (argc > 3) threshold = std::stod(argv[3]);
  std::puts(as_json(detections(boxes, scores, labels, *count, picture, threshold)).c_str());
%% else
  const auto* labels = values<uint8_t>(*result, @{ outputs.labels }@, ScalarType::Byte, ssize_t(kHeight) * kWidth);
  const std::vector<uint8_t> map = label_map(labels, picture);
  write_map(argv[3], map, picture, false);
  if (argc > 4) write_map(argv[4], map, picture, true);
%% endif
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
