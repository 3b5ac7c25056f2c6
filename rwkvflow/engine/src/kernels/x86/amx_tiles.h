// The operations of AMX on tiles that kernels/x86/amx.cc uses: registers of up to 16 rows of 64 bytes, whose shapes are
// set beforehand. Written as instructions, since GCC's own functions lose stores (_tile_loadconfig tells it of 8 bytes
// that are read, and not of 64).
//
// With RWKV_AMX_MODEL they are a model in plain C++ instead, for tests on processors without AMX: it does what Intel's
// manual says, and ends the program where a processor would raise a fault.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

namespace rwkvflow {
namespace {

// What LDTILECFG reads.
struct alignas(64) TileShapes {
    uint8_t palette, start_row;
    uint8_t zeros[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];

    constexpr void set(int tile, uint32_t count, uint32_t bytes) {
        rows[tile] = static_cast<uint8_t>(count);
        row_bytes[tile] = static_cast<uint16_t>(bytes);
    }
};
static_assert(sizeof(TileShapes) == 64);

#if defined(RWKV_AMX_MODEL)

struct TileModel {
    bool ready;
    uint32_t rows[8], row_bytes[8];
    uint8_t at[8][16][64];
    uint64_t multiplied;

    void need(bool fine) const {
        if (!fine) __builtin_trap();
    }
    void need_tile(int tile) const { need(ready && rows[tile] != 0); }
};
inline thread_local TileModel model_tiles;

inline void tiles_begin(const TileShapes &shapes) {
    TileModel &m = model_tiles;
    bool fine = shapes.palette == 1 && shapes.start_row == 0;
    for (const uint8_t zero : shapes.zeros) fine = fine && zero == 0;
    for (int i = 0; i < 16; ++i) {
        const uint32_t rows = shapes.rows[i], bytes = shapes.row_bytes[i];
        fine = fine && rows <= 16 && bytes <= 64 && (rows == 0) == (bytes == 0) && (i < 8 || rows == 0);
        if (i >= 8) continue;
        m.rows[i] = rows;
        m.row_bytes[i] = bytes;
    }
    m.need(fine);
    memset(m.at, 0, sizeof m.at);
    m.ready = true;
}
inline void tiles_end() { model_tiles.ready = false; }
template <int TILE>
inline void tile_zero() {
    model_tiles.need_tile(TILE);
    memset(model_tiles.at[TILE], 0, sizeof model_tiles.at[TILE]);
}
template <int TILE>
inline void tile_load(const void *from, size_t step) {
    tile_zero<TILE>();
    TileModel &m = model_tiles;
    for (uint32_t row = 0; row < m.rows[TILE]; ++row)
        memcpy(m.at[TILE][row], static_cast<const char *>(from) + row * step, m.row_bytes[TILE]);
}
template <int TILE>
inline void tile_store(void *to, size_t step) {
    TileModel &m = model_tiles;
    m.need_tile(TILE);
    for (uint32_t row = 0; row < m.rows[TILE]; ++row)
        memcpy(static_cast<char *>(to) + row * step, m.at[TILE][row], m.row_bytes[TILE]);
}
template <int SUMS, int A, int B>
inline void tile_multiply() {
    TileModel &m = model_tiles;
    m.need_tile(SUMS), m.need_tile(A), m.need_tile(B);
    m.need(SUMS != A && SUMS != B && A != B);
    m.need(m.row_bytes[SUMS] % 4 == 0 && m.row_bytes[A] % 4 == 0 && m.row_bytes[B] == m.row_bytes[SUMS]);
    m.need(m.rows[A] == m.rows[SUMS] && m.row_bytes[A] == 4 * m.rows[B]);
    for (uint32_t row = 0; row < m.rows[SUMS]; ++row) {
        int32_t sums[16];
        memcpy(sums, m.at[SUMS][row], sizeof sums);
        for (uint32_t four = 0; four < m.rows[B]; ++four)
            for (uint32_t column = 0; column < m.row_bytes[B] / 4; ++column)
                for (uint32_t i = 0; i < 4; ++i)
                    sums[column] += static_cast<int8_t>(m.at[A][row][4 * four + i]) *
                                    static_cast<int8_t>(m.at[B][four][4 * column + i]);
        memset(m.at[SUMS][row], 0, sizeof sums);
        memcpy(m.at[SUMS][row], sums, m.row_bytes[SUMS]);
    }
    ++m.multiplied;
}

#else

// All that stands in memory may be read and written by these: so compilers leave them in their order. They know nothing
// of tiles themselves.
inline void tiles_begin(const TileShapes &shapes) { __asm__ volatile("ldtilecfg %0" : : "m"(shapes) : "memory"); }
inline void tiles_end() { __asm__ volatile("tilerelease" : : : "memory"); }
template <int TILE>
inline void tile_zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(TILE));
}
template <int TILE>
inline void tile_load(const void *from, size_t step) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(step), "i"(TILE) : "memory");
}
template <int TILE>
inline void tile_store(void *to, size_t step) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(step), "i"(TILE) : "memory");
}
// Of signed bytes: sums[m][n] += a[m][4 k + i] * b[k][4 n + i].
template <int SUMS, int A, int B>
inline void tile_multiply() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(A), "i"(B));
}

#endif

}  // namespace
}  // namespace rwkvflow
