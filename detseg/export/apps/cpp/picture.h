@{ header("//") }@
// A picture to what the file takes, and what it gives to the picture's own pixels. Knows nothing of the runtime.

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
%% if detector
#include <optional>
%% endif
#include <stdexcept>
#include <string>
#include <vector>

struct ClassInfo {
  const char* name;  // UTF-8
  int id;            // what the training data call it
  std::array<uint8_t, 3> colour;
%% if detector
  double threshold;  // the score from which it is shown
%% endif
};

constexpr int kNumClasses = @{ classes|length }@;
constexpr ClassInfo kClasses[kNumClasses] = {
%% for class in classes
    {@{ class.name|literal("cpp") }@, @{ class.id }@, {@{ class.colour|join(", ") }@}@{ ", " ~ class.threshold if detector }@},
%% endfor
};

constexpr int kHeight = @{ height }@, kWidth = @{ width }@;  // of the file's input
%% if detector
constexpr int kRows = @{ rows }@;  // of boxes, best first; those from `count` on are empty
%% endif
%% if uint8
using Value = uint8_t;
%% else
using Value = float;
%% endif

// RGB, row by row from the top left, as the picture is seen (the camera's EXIF orientation is applied).
struct Picture {
  int height = 0, width = 0;
  std::vector<uint8_t> pixels;
};

// Where a picture lies in the input: input = picture * scale + offset.
struct Placement {
  int top, left, height, width;
  float scale_y, scale_x;
};

%% if stretch
// Everywhere: each axis is scaled on its own.
inline Placement place(int height, int width) {
  return {0, 0, kHeight, kWidth, float(double(kHeight) / height), float(double(kWidth) / width)};
}
%% else
// As large as fits, with its aspect ratio, centred between bars.
inline Placement place(int height, int width) {
  const double scale = std::min(double(kHeight) / height, double(kWidth) / width);
  const int inner_height = std::max(1, int(std::nearbyint(height * scale)));
  const int inner_width = std::max(1, int(std::nearbyint(width * scale)));
  return {(kHeight - inner_height) / 2, (kWidth - inner_width) / 2, inner_height, inner_width,
          float(double(inner_height) / height), float(double(inner_width) / width)};
}
%% endif

// The two pixels along an axis that one of the input lies between, and how near it is to the second.
struct Neighbours {
  int first, second;
  float weight;
};

inline std::vector<Neighbours> neighbours(int from, int to) {
  std::vector<Neighbours> found(to);
  for (int k = 0; k < to; ++k) {
%% if points
    // Pixels are points, no antialias: TensorFlow's first bilinear kernel.
    const float position = k * (float(from) / to);
%% elif uint8
    const float position = float((k + 0.5) * (double(from) / to) - 0.5);  // half-pixel centres, no antialias
%% else
    const float position = (k + 0.5f) * (float(from) / to) - 0.5f;  // half-pixel centres, no antialias
%% endif
    const int first = int(std::floor(position));
    if (first < 0) {
      found[k] = {0, 0, 0.0f};
    } else if (first >= from - 1) {
      found[k] = {from - 1, from - 1, 0.0f};
    } else {
      found[k] = {first, first + 1, position - float(first)};
    }
  }
  return found;
}

// @{ given }@
inline std::vector<Value> network_input(const Picture& picture) {
  const Placement placed = place(picture.height, picture.width);
  const auto rows = neighbours(picture.height, placed.height), columns = neighbours(picture.width, placed.width);
%% if stretch
  std::vector<Value> input(size_t(kHeight) * kWidth * 3);
%% else
  constexpr Value fill[3] = {@{ fill|join(", ") }@};  // the bars' colour
  std::vector<Value> input(size_t(kHeight) * kWidth * 3);
  for (size_t k = 0; k < size_t(kHeight) * kWidth; ++k) {
%% if nhwc
    for (int c = 0; c < 3; ++c) input[k * 3 + c] = fill[c];
%% else
    for (int c = 0; c < 3; ++c) input[c * size_t(kHeight) * kWidth + k] = fill[c];
%% endif
  }
%% endif
  for (int y = 0; y < placed.height; ++y) {
    const uint8_t* above = &picture.pixels[size_t(rows[y].first) * picture.width * 3];
    const uint8_t* below = &picture.pixels[size_t(rows[y].second) * picture.width * 3];
    for (int x = 0; x < placed.width; ++x) {
      const int left = columns[x].first * 3, right = columns[x].second * 3;
      const float wx = columns[x].weight, wy = rows[y].weight;
      for (int c = 0; c < 3; ++c) {
        const float upper = above[left + c] * (1 - wx) + above[right + c] * wx;
        const float lower = below[left + c] * (1 - wx) + below[right + c] * wx;
        const float value = upper * (1 - wy) + lower * wy;
        const size_t pixel = size_t(placed.top + y) * kWidth + placed.left + x;
%% if nhwc
        const size_t at = pixel * 3 + c;
%% else
        const size_t at = c * size_t(kHeight) * kWidth + pixel;
%% endif
%% if uint8
        input[at] = uint8_t(std::nearbyint(value));  // halves to even
%% else
        input[at] = value;
%% endif
      }
    }
  }
  return input;
}
%% if detector

// One object, its box in the picture's own pixels.
struct Detection {
  float left, top, right, bottom, score;
  int label;  // a place in kClasses
};

// What the file gives for a picture. It is suppressed and sorted already: of the first `count` rows those are kept that
// reach the threshold of their class, or `threshold` where it is given.
inline std::vector<Detection> detections(const float* boxes, const float* scores, const int32_t* labels, int count,
                                         const Picture& picture, std::optional<double> threshold = std::nullopt) {
  const Placement placed = place(picture.height, picture.width);
  const auto x = [&](float value) {
    return std::clamp((value - placed.left) / placed.scale_x, 0.0f, float(picture.width));
  };
  const auto y = [&](float value) {
    return std::clamp((value - placed.top) / placed.scale_y, 0.0f, float(picture.height));
  };
  std::vector<Detection> found;
  for (int k = 0; k < count; ++k) {
    if (scores[k] >= threshold.value_or(kClasses[labels[k]].threshold)) {
      const float* box = boxes + 4 * k;  // left, top, right, bottom
      found.push_back({x(box[0]), y(box[1]), x(box[2]), y(box[3]), scores[k], labels[k]});
    }
  }
  return found;
}
%% else

// The label map that the file gives, at the picture's own size: of each pixel a place in kClasses.
inline std::vector<uint8_t> label_map(const uint8_t* labels, const Picture& picture) {
  const Placement placed = place(picture.height, picture.width);
  const double scale_y = double(placed.height) / picture.height, scale_x = double(placed.width) / picture.width;
  std::vector<uint8_t> map(size_t(picture.height) * picture.width);
  for (int y = 0; y < picture.height; ++y) {
    const int row = int((y + 0.5) * scale_y + placed.top);
    for (int x = 0; x < picture.width; ++x) {
      map[size_t(y) * picture.width + x] = labels[size_t(row) * kWidth + int((x + 0.5) * scale_x + placed.left)];
    }
  }
  return map;
}
%% endif

// A binary PPM (P6, 8 bits), the simplest file of RGB pixels; an app has a decoder of its own.
inline Picture read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int numbers[3] = {};
  file >> magic;
  for (int& number : numbers) {
    while ((file >> std::ws).peek() == '#') file.ignore(1 << 20, '\n');
    file >> number;
  }
  file.get();
  Picture picture{numbers[1], numbers[0], {}};
  if (!file || magic != "P6" || numbers[2] != 255 || picture.height < 1 || picture.width < 1) {
    throw std::runtime_error(path + " is no binary PPM of 8 bits (P6)");
  }
  picture.pixels.resize(size_t(picture.height) * picture.width * 3);
  if (!file.read(reinterpret_cast<char*>(picture.pixels.data()), std::streamsize(picture.pixels.size()))) {
    throw std::runtime_error(path + " is cut short");
  }
  return picture;
}
%% if detector

// A text as JSON writes it.
inline std::string quoted(const std::string& text) {
  static const char* hex = "0123456789abcdef";
  std::string out = "\"";
  for (const char letter : text) {
    const auto code = static_cast<unsigned char>(letter);
    if (code < 0x20) {
      out += std::string("\\u00") + hex[code >> 4] + hex[code & 15];
    } else {
      if (letter == '"' || letter == '\\') out += '\\';
      out += letter;
    }
  }
  return out + "\"";
}

// One line of JSON.
inline std::string as_json(const std::vector<Detection>& found) {
  std::string boxes, scores, labels, names;
  char text[128];
  for (const Detection& one : found) {
    const char* comma = boxes.empty() ? "" : ", ";
    std::snprintf(text, sizeof text, "%s[%.9g, %.9g, %.9g, %.9g]", comma, one.left, one.top, one.right, one.bottom);
    boxes += text;
    std::snprintf(text, sizeof text, "%s%.9g", comma, one.score);
    scores += text;
    labels += comma + std::to_string(one.label);
    names += comma + quoted(kClasses[one.label].name);
  }
  return "{\"boxes\": [" + boxes + "], \"scores\": [" + scores + "], \"labels\": [" + labels + "], \"names\": [" +
         names + "]}";
}
%% else

// A label map as a binary PGM (P5), or in its classes' colours as a PPM (P6).
inline void write_map(const std::string& path, const std::vector<uint8_t>& map, const Picture& picture, bool coloured) {
  std::ofstream file(path, std::ios::binary);
  file << (coloured ? "P6 " : "P5 ") << picture.width << ' ' << picture.height << " 255\n";
  for (const uint8_t label : map) {
    if (coloured) {
      file.write(reinterpret_cast<const char*>(kClasses[label].colour.data()), 3);
    } else {
      file.put(char(label));
    }
  }
  if (!file.flush()) throw std::runtime_error(path + " cannot be written");
}
%% endif
