// Memory in one piece: an arena is measured first, then allocated once and carved up.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace rwkvflow {

inline constexpr uint64_t kAlignment = 64;

// a * b and a + b that stay at the largest value once they would overflow, so that an allocation of it fails.
inline uint64_t mul_sat(uint64_t a, uint64_t b) {
    uint64_t out;
    return __builtin_mul_overflow(a, b, &out) ? UINT64_MAX : out;
}
inline uint64_t add_sat(uint64_t a, uint64_t b) {
    uint64_t out;
    return __builtin_add_overflow(a, b, &out) ? UINT64_MAX : out;
}

// Zeroed memory aligned to kAlignment; free with aligned_free. Null for no memory or an absurd size.
inline void *aligned_zeroed(uint64_t bytes) {
    if (bytes > (UINT64_MAX >> 8) || bytes + kAlignment + sizeof(void *) > SIZE_MAX / 2) return nullptr;
    char *raw = static_cast<char *>(calloc(1, static_cast<size_t>(bytes + kAlignment + sizeof(void *))));
    if (raw == nullptr) return nullptr;
    const uintptr_t start = reinterpret_cast<uintptr_t>(raw) + sizeof(void *);
    char *aligned = raw + sizeof(void *) + ((kAlignment - start % kAlignment) % kAlignment);
    memcpy(aligned - sizeof(void *), &raw, sizeof raw);
    return aligned;
}
inline void aligned_free(void *pointer) {
    if (pointer == nullptr) return;
    void *raw;
    memcpy(&raw, static_cast<char *>(pointer) - sizeof(void *), sizeof raw);
    free(raw);
}

// Run the same sequence of take() twice: first with base null to learn `used`, then with memory of that size.
struct Arena {
    char *base = nullptr;
    uint64_t used = 0;

    template <typename T>
    T *take(uint64_t count) {
        const uint64_t bytes = mul_sat(count, sizeof(T));
        const uint64_t rounded = add_sat(bytes, kAlignment - 1) / kAlignment * kAlignment;
        T *out = base == nullptr ? nullptr : reinterpret_cast<T *>(base + used);
        used = add_sat(used, rounded);
        return out;
    }
};

}  // namespace rwkvflow
