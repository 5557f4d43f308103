/*
 * The order in which CTAs go through the tiles of an output: down BAND rows of tiles, then to the next column of them,
 * so that those that run together share operands in L2.
 */
#ifndef INT4MM_BANDS_CUH
#define INT4MM_BANDS_CUH

namespace {

constexpr int BAND = 8;

/* First row and column of a tile. */
struct TileCoord {
  int row, column;
};
/* Int: unsigned ones divide by fewer instructions; the registers of some kernels suffice for int alone. */
template <class Int>
__device__ __forceinline__ TileCoord tile_coord(Int tile, Int tiles_m, Int tiles_n, Int tile_m, Int tile_n) {
  Int per_band = BAND * tiles_n, band = tile / per_band, inside = tile % per_band;
  Int height = min((Int)BAND, tiles_m - band * (Int)BAND);
  return {(int)((band * BAND + inside % height) * tile_m), (int)(inside / height * tile_n)};
}

} // namespace
#endif
