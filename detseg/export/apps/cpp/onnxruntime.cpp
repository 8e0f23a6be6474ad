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
#include <filesystem>
%% if detector
#include <optional>
%% endif
#include <stdexcept>
#include <string>
#include <vector>

#include <onnxruntime_cxx_api.h>

#include "picture.h"

int main(int argc, char** argv) try {
%% if detector
  if (argc < 3 || argc > 4) throw std::runtime_error("usage: predict MODEL.onnx PICTURE.ppm [THRESHOLD]");
%% else
  if (argc < 4 || argc > 5) throw std::runtime_error("usage: predict MODEL.onnx PICTURE.ppm LABELS.pgm [COLOURS.ppm]");
%% endif
  const Picture picture = read_ppm(argv[2]);
  std::vector<Value> pixels = network_input(picture);

  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "predict");  // these three once in an app
  Ort::SessionOptions options;
  Ort::Session session(env, std::filesystem::path(argv[1]).c_str(), options);
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const int64_t shape[4] = {@{ shape|join(", ") }@};
  const Ort::Value images = Ort::Value::CreateTensor<Value>(memory, pixels.data(), pixels.size(), shape, 4);
  const char* input_names[] = {"images"};
%% if detector
  const char* output_names[] = {"boxes", "scores", "labels", "count"};
  const auto outputs = session.Run(Ort::RunOptions{nullptr}, input_names, &images, 1, output_names, 4);
  const auto* boxes = outputs[0].GetTensorData<float>();
  const auto* scores = outputs[1].GetTensorData<float>();
  const auto* labels = outputs[2].GetTensorData<int32_t>();
  const auto* count = outputs[3].GetTensorData<int32_t>();
  std::optional<double> threshold;
  if (argc > 3) threshold = std::stod(argv[3]);
  std::puts(as_json(detections(boxes, scores, labels, *count, picture, threshold)).c_str());
%% else
  const char* output_names[] = {"labels"};
  const auto outputs = session.Run(Ort::RunOptions{nullptr}, input_names, &images, 1, output_names, 1);
  const std::vector<uint8_t> map = label_map(outputs[0].GetTensorData<uint8_t>(), picture);
  write_map(argv[3], map, picture, false);
  if (argc > 4) write_map(argv[4], map, picture, true);
%% endif
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
