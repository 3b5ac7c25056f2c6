// Threads on processors: the only calls of the operating system that place them. See processors.h.
#pragma once

#include "base/processors.h"

namespace rwkvflow {

// The calling thread's mask. False where the system has none, or one that does not fit.
bool get_affinity(CpuSet *out);
// Sets it; where the system refuses, the thread stays where it is.
void set_affinity(const CpuSet &set);
// The processor that the calling thread runs on at the moment; 0 where it is not known.
uint32_t processor_here();

}  // namespace rwkvflow
