// What this machine can do at most, which a model's figures are measured against: bytes that its memory gives, and
// products that its instructions work out, each by so many threads together.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/common/kernels.h"

double now();  // seconds, of a clock that only goes forwards
// The same for what so many threads do. One has the processor's time, from which other programs take little.
double now_of(uint32_t threads);

// Ways to read a buffer from end to end. Which is the fastest depends on the processor.
inline constexpr int kWays = 3;
// Seconds a byte of one pass over it.
double read_once(const char *buffer, size_t bytes, uint32_t threads, int way);

// Products a second, by the kernels that the engine uses.
double products_once(rwkvflow::Products kind, uint32_t threads);
