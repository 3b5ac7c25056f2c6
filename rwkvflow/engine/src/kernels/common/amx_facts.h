// Whether a processor's tiles can be used, which is asked before the set `amx` is.
#pragma once

#include <stdint.h>

namespace rwkvflow {

// What a processor and its operating system say of AMX: CPUID 7, register D; the register XCR0, of what the system
// saves; CPUID 0x1d, register A, and its part 1, registers A to C: the one shape of tiles there is.
struct AmxFacts {
    uint32_t features, saved, palettes, tile_bytes, row_bytes, rows;
};
// Whether those tiles can be used once the system permits it. A virtual machine may say that there is AMX and save no
// tiles.
bool amx_usable(const AmxFacts &facts);

}  // namespace rwkvflow
