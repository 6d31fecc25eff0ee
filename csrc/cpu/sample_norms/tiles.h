// sample_grad_norm by tiles: a piece of G^T A at a time, for several samples where it is small.
#pragma once

#include "products.h"

namespace mbq {

// How G^T A is cut.
template <class W>
struct TilePlan {
  const Samples<W>& samples;
  int64_t rows, columns;  // of a tile
  int64_t batch;          // samples in a product
  int64_t chunk;          // positions in a product

  explicit TilePlan(const Samples<W>& of)
      : samples(of),
        rows(even_size(of.outputs(), kSide)),
        columns(even_size(of.inputs(), kSide)),
        batch(batch_size(of.all(), rows * columns)),
        chunk(of.positions()) {
    if (!of.activations->direct() || !of.grads->direct())
      chunk = std::min(chunk, std::max<int64_t>(32, kTile / (batch * std::max(rows, columns))));
  }

  int64_t row_tiles() const { return pieces(samples.outputs(), rows); }
  int64_t column_tiles() const { return std::max<int64_t>(1, pieces(samples.inputs(), columns)); }
  int64_t tiles() const { return row_tiles() * column_tiles(); }
  int64_t product() const { return batch * rows * columns; }
  int64_t space_of_grads() const { return samples.grads->direct() ? 0 : batch * chunk * rows; }
  int64_t space() const {
    return product() + space_of_grads() + (samples.activations->direct() ? 0 : batch * chunk * columns);
  }
};

// sums (batch, columns) += the sums over positions
template <class W>
void add_positions(const Matrices<W>& grads, double* sums) {
  for (int64_t b = 0; b < grads.batch; ++b) {
    const W* data = grads.data + b * grads.batch_stride;
    double* to = sums + b * grads.columns;
    if (grads.column_stride == 1)
      for (int64_t t = 0; t < grads.rows; ++t) run<AddRow<W>>(data + t * grads.row_stride, to, grads.columns);
    else
      for (int64_t c = 0; c < grads.columns; ++c) run<Sum<W>>(data + c * grads.column_stride, grads.rows, to + c);
  }
}

// The squares of one tile of a batch of samples: sums[b * stride] for sample b.
template <class W>
void tile_norms(const TilePlan<W>& plan, Range batch, Range rows, Range columns, W* space, double* sums,
                int64_t stride) {
  const Samples<W>& samples = plan.samples;
  const Matrices<W> product{space, batch.size, rows.size, columns.size, rows.size * columns.size, columns.size, 1};
  const bool biased = samples.bias && columns.begin == 0;
  std::vector<double> bias(biased ? batch.size * rows.size : 0);
  for (int64_t begin = 0; begin < samples.positions(); begin += plan.chunk) {
    const Range chunk{begin, std::min(plan.chunk, samples.positions() - begin)};
    W* more = space + plan.product();
    const Matrices<W> grads = samples.grads->block(batch, chunk, rows, more);
    if (columns.size > 0) {
      const Matrices<W> activations = samples.activations->block(batch, chunk, columns, more + plan.space_of_grads());
      multiply(grads.transposed(), activations, product, begin > 0);
    }
    if (biased) add_positions(grads, bias.data());
  }
  for (int64_t b = 0; b < batch.size; ++b) {
    double sum = 0;
    const W* at = space + b * rows.size * columns.size;
    const int64_t group = (batch.begin + b) % samples.groups;
    if (samples.factor == nullptr) run<Squares<false, W>>(at, at, rows.size * columns.size, &sum);
    for (int64_t r = 0; samples.factor != nullptr && r < rows.size; ++r)
      run<Squares<true, W>>(
          at + r * columns.size,
          samples.factor + (group * samples.outputs() + rows.begin + r) * samples.inputs() + columns.begin,
          columns.size, &sum);
    for (int64_t r = 0; biased && r < rows.size; ++r) sum += bias[b * rows.size + r] * bias[b * rows.size + r];
    sums[b * stride] = sum;
  }
}

template <class W>
std::vector<double> norms_by_tiles(const Samples<W>& samples) {
  std::vector<double> none(samples.count);
  if (samples.positions() == 0 || samples.outputs() == 0) return none;
  const TilePlan<W> plan(samples);
  const int64_t tiles = plan.tiles(), batches = pieces(samples.all(), plan.batch);
  std::vector<double> partial(samples.all() * tiles);
  const double each = 1.0 * plan.product() * samples.positions();
  for_tasks<W>(batches * tiles, each, plan.space(), [&](int64_t task, W* space) {
    const Range batch = piece_of(samples.all(), plan.batch, task / tiles);
    const int64_t tile = task % tiles;
    tile_norms(plan, batch, piece_of(samples.outputs(), plan.rows, tile / plan.column_tiles()),
               piece_of(samples.inputs(), plan.columns, tile % plan.column_tiles()), space,
               &partial[batch.begin * tiles + tile], tiles);
  });
  return ordered_sums(partial, samples.count);
}

}  // namespace mbq
