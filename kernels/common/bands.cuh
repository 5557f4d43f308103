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
__device__ __forceinline__ TileCoord tile_coord(int tile, int tiles_m, int tiles_n, int tile_m, int tile_n) {
  int per_band = BAND * tiles_n, band = tile / per_band, inside = tile % per_band;
  int height = min(BAND, tiles_m - band * BAND);
  return {(band * BAND + inside % height) * tile_m, inside / height * tile_n};
}

} // namespace
#endif
