#include "sampling/sampler.h"

#include <stdlib.h>
#include <string.h>

namespace rwkvflow {

bool Tallies::reserve(size_t wanted) {
    if (wanted <= room) return true;
    const size_t more = wanted + wanted / 2 + 16;
    if (more > SIZE_MAX / sizeof(Tally)) return false;
    Tally *moved = static_cast<Tally *>(realloc(all, more * sizeof(Tally)));
    if (moved == nullptr) return false;
    all = moved;
    room = more;
    return true;
}

size_t Tallies::find(uint32_t token) const {
    size_t low = 0, high = count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (all[middle].token < token) low = middle + 1;
        else high = middle;
    }
    return low;
}

void Tallies::insert(size_t at, uint32_t token, double value) {
    memmove(all + at + 1, all + at, (count - at) * sizeof(Tally));
    all[at] = {token, value};
    ++count;
}

}  // namespace rwkvflow

void rwkvflow_sampler::chose(uint32_t token) {
    if (!penalizes()) return;
    size_t kept = 0;
    for (size_t i = 0; i < counts.count; ++i) {
        const double left = counts.all[i].value * decay;
        if (left > 0) counts.all[kept++] = {counts.all[i].token, left};
    }
    counts.count = kept;
    const size_t at = counts.find(token);
    if (at < kept && counts.all[at].token == token) counts.all[at].value += 1.0;
    else counts.insert(at, token, 1.0);
}
