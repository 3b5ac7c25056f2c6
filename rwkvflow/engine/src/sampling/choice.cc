#include "sampling/choice.h"

#include <string.h>

#include "base/memory.h"

namespace rwkvflow {

namespace {

constexpr uint32_t kGroup = 64;    // values of which the largest is kept
constexpr uint32_t kBlock = 1024;  // values worked on at a time: they stay in the fastest cache
constexpr uint32_t kBuckets = 16384;
constexpr uint32_t kInsertion = 16;  // candidates up to which sorting by insertion is quickest
constexpr double kNever = -__builtin_inf();
constexpr double kLeast = -__DBL_MAX__;  // below every value but that

typedef double D8 __attribute__((vector_size(64)));

uint32_t groups_of(uint32_t n) { return n / kGroup + (n % kGroup != 0); }

bool before(const Candidate &a, const Candidate &b) {
    return a.value > b.value || (a.value == b.value && a.token < b.token);
}

void swap(Candidate *a, Candidate *b) {
    const Candidate other = *a;
    *a = *b;
    *b = other;
}

// Heaps whose root is the last in order, so that taking off the roots leaves what is in order.
void sink(Candidate *heap, size_t at, size_t count) {
    for (size_t child = 2 * at + 1; child < count; at = child, child = 2 * at + 1) {
        if (child + 1 < count && before(heap[child], heap[child + 1])) ++child;
        if (!before(heap[at], heap[child])) return;
        swap(heap + at, heap + child);
    }
}

void sort(Candidate *all, size_t count) {
    if (count <= kInsertion) {
        for (size_t i = 1; i < count; ++i) {
            const Candidate moved = all[i];
            size_t at = i;
            for (; at > 0 && before(moved, all[at - 1]); --at) all[at] = all[at - 1];
            all[at] = moved;
        }
        return;
    }
    for (size_t i = count / 2; i-- > 0;) sink(all, i, count);
    for (size_t left = count; left-- > 1;) {
        swap(all, all + left);
        sink(all, 0, left);
    }
}

// One choice, or one rating, of logits.
class Choice {
public:
    Choice(const Kernels *kernels, ChoiceRoom *room, const float *logits, const uint32_t *allowed)
        : kernels_(kernels), room_(*room), logits_(logits), allowed_(allowed) {}

    // Puts values into the room: logits after bias and penalties, where there is a sampler, and minus infinity for ids
    // that are not allowed. False where a logit is not finite.
    bool fill(const rwkvflow_sampler *sampler);
    // The likeliest id, of equal ones the lowest, and its value; minus infinity where none is allowed.
    uint32_t likeliest(double *value) const;
    uint32_t draw(rwkvflow_sampler *sampler, double largest);
    // The `top` first ids in order.
    uint32_t first(uint32_t top, double largest);
    const Candidate &candidate(uint32_t at) const { return room_.ordered[at]; }
    double sum(double largest, double temperature) const {
        return kernels_->running(room_.values, room_.size, largest, temperature, 0.0, nullptr);
    }

private:
    bool widen(uint32_t begin, uint32_t end);
    void adjust(const rwkvflow_sampler &sampler, uint32_t end);
    void forbid(uint32_t begin, uint32_t end);
    uint32_t count_allowed() const;
    // A bound that at least `count` values reach, where such a bound is known.
    double bound_of(uint32_t count);
    // Makes candidates of the values that reach it, in buckets of which each is before the next.
    void collect(double bound, double largest);
    // Puts candidates in order up to `at`, with running sums of their weights; false where there are not so many.
    bool reach(uint32_t at);
    // The token that `share` of the sum of what is kept falls on; kNoToken where the candidates do not get there.
    uint32_t fall(const rwkvflow_sampler &sampler, uint32_t most, double total, double share);

    const Kernels *kernels_;
    const ChoiceRoom &room_;
    const float *logits_;
    const uint32_t *allowed_;
    size_t bias_ = 0, counts_ = 0;  // tallies that were looked at
    uint32_t n_found_ = 0, n_buckets_ = 0;
    uint32_t bucket_ = 0, n_ordered_ = 0;  // buckets, and candidates, that are in order
    double largest_ = 0, temperature_ = 1, sum_ = 0;
};

bool Choice::widen(uint32_t begin, uint32_t end) {
    uint32_t bad = 0;
    for (uint32_t i = begin; i < end; ++i) {
        const float value = logits_[i];
        room_.values[i] = static_cast<double>(value);
        bad |= value - value != 0;
    }
    for (uint32_t i = end; i % kGroup != 0; ++i) room_.values[i] = kNever;
    return bad == 0;
}

void Choice::adjust(const rwkvflow_sampler &s, uint32_t end) {
    const Tallies &bias = s.bias, &counts = s.counts;
    for (; bias_ < bias.count && bias.all[bias_].token < end; ++bias_)
        room_.values[bias.all[bias_].token] += bias.all[bias_].value;
    if (!s.penalizes()) return;
    for (; counts_ < counts.count && counts.all[counts_].token < end; ++counts_)
        room_.values[counts.all[counts_].token] -= s.presence + s.frequency * counts.all[counts_].value;
}

void Choice::forbid(uint32_t begin, uint32_t end) {
    for (uint32_t at = begin; at < end; at += 32) {
        uint32_t none = ~allowed_[at / 32];
        if (end - at < 32) none &= (1u << (end - at)) - 1;
        for (; none != 0; none &= none - 1) room_.values[at + static_cast<uint32_t>(__builtin_ctz(none))] = kNever;
    }
}

bool Choice::fill(const rwkvflow_sampler *sampler) {
    for (uint32_t begin = 0; begin < room_.size; begin += kBlock) {
        const uint32_t end = room_.size - begin < kBlock ? room_.size : begin + kBlock;
        if (!widen(begin, end)) return false;
        if (sampler != nullptr) adjust(*sampler, end);
        if (allowed_ != nullptr) forbid(begin, end);
        for (uint32_t group = begin / kGroup; group * kGroup < end; ++group) {
            D8 most, other;
            memcpy(&most, room_.values + size_t{group} * kGroup, sizeof most);
            for (uint32_t i = 8; i < kGroup; i += 8) {
                memcpy(&other, room_.values + size_t{group} * kGroup + i, sizeof other);
                most = other > most ? other : most;
            }
            double largest = most[0];
            for (int i = 1; i < 8; ++i) largest = most[i] > largest ? most[i] : largest;
            room_.largest[group] = largest;
        }
    }
    return true;
}

uint32_t Choice::likeliest(double *value) const {
    uint32_t best = 0;
    for (uint32_t group = 1; group < groups_of(room_.size); ++group)
        if (room_.largest[group] > room_.largest[best]) best = group;
    *value = room_.largest[best];
    uint32_t at = best * kGroup;
    while (room_.values[at] != *value) ++at;
    return at;
}

uint32_t Choice::count_allowed() const {
    if (allowed_ == nullptr) return room_.size;
    uint32_t count = 0;
    for (uint32_t at = 0; at < room_.size; at += 32) {
        const uint32_t left = room_.size - at;
        count += static_cast<uint32_t>(
            __builtin_popcount(left < 32 ? allowed_[at / 32] & ((1u << left) - 1) : allowed_[at / 32]));
    }
    return count;
}

double Choice::bound_of(uint32_t count) {
    // The values of so many groups reach the least of the largest of them.
    const uint32_t groups = groups_of(room_.size);
    if (count > groups) return kLeast;
    for (uint32_t i = 0; i < groups; ++i) room_.found[i] = {room_.largest[i], i};
    Candidate *heap = room_.found;  // the least of the `count` largest so far is its root
    for (size_t i = count / 2; i-- > 0;) sink(heap, i, count);
    for (uint32_t i = count; i < groups; ++i)
        if (before(heap[i], heap[0])) {
            swap(heap, heap + i);
            sink(heap, 0, count);
        }
    return heap[0].value > kLeast ? heap[0].value : kLeast;
}

void Choice::collect(double bound, double largest) {
    n_found_ = bucket_ = n_ordered_ = 0;
    sum_ = 0;
    double least = largest;
    for (uint32_t group = 0; group < groups_of(room_.size); ++group) {
        if (room_.largest[group] < bound) continue;
        for (uint32_t i = group * kGroup; i < (group + 1) * kGroup; ++i) {
            const double value = room_.values[i];
            if (value < bound) continue;
            room_.found[n_found_++] = {value, i};
            least = value < least ? value : least;
        }
    }
    // So many buckets that few candidates are in one, of equal width. Whether rounding puts one that is between two
    // buckets here or there is the same for all of equal value, and a larger value is never put further back.
    n_buckets_ = n_found_ <= kInsertion ? 1 : n_found_ / 4 < kBuckets ? n_found_ / 4 : kBuckets;
    double scale = static_cast<double>(n_buckets_ - 1) / (largest - least);
    if (!(largest - least > 0) || !(largest - least < 1e300) || !(scale < 1e300)) n_buckets_ = 1, scale = 0;
    const auto bucket_of = [&](double value) { return static_cast<uint32_t>((largest - value) * scale); };
    uint32_t *ends = room_.ends;
    if (n_buckets_ == 1) {
        memcpy(room_.ordered, room_.found, n_found_ * sizeof(Candidate));
        ends[0] = n_found_;
        return;
    }
    memset(ends, 0, n_buckets_ * sizeof *ends);
    for (uint32_t i = 0; i < n_found_; ++i) ++ends[bucket_of(room_.found[i].value)];
    for (uint32_t bucket = 0, all = 0; bucket < n_buckets_; ++bucket) {
        const uint32_t count = ends[bucket];
        ends[bucket] = all;  // where it begins, and in the end where it ends
        all += count;
    }
    for (uint32_t i = 0; i < n_found_; ++i) room_.ordered[ends[bucket_of(room_.found[i].value)]++] = room_.found[i];
}

bool Choice::reach(uint32_t at) {
    while (at >= n_ordered_) {
        if (bucket_ == n_buckets_) return false;
        const uint32_t begin = n_ordered_, end = room_.ends[bucket_++];
        sort(room_.ordered + begin, end - begin);
        for (uint32_t i = begin; i < end; ++i) room_.running[i] = room_.ordered[i].value;
        sum_ =
            kernels_->running(room_.running + begin, end - begin, largest_, temperature_, sum_, room_.running + begin);
        n_ordered_ = end;
    }
    return true;
}

uint32_t Choice::first(uint32_t top, double largest) {
    largest_ = largest;
    const uint32_t ids = count_allowed(), count = top < ids ? top : ids;
    if (count == 0) return 0;
    collect(bound_of(count), largest);
    reach(count - 1);
    return count;
}

uint32_t Choice::fall(const rwkvflow_sampler &s, uint32_t most, double total, double share) {
    uint32_t end = most;
    double kept = total;
    if (s.top_p < 1) {
        const double goal = s.top_p * total;
        for (end = 0; end < most; ++end) {
            if (!reach(end)) return kNoToken;
            if (room_.running[end] >= goal) break;
        }
        end = end < most ? end + 1 : most;
        kept = room_.running[end - 1];
    }
    const double goal = share * kept;
    for (uint32_t at = 0;; ++at) {
        if (!reach(at)) return kNoToken;
        if (room_.running[at] > goal || at + 1 == end) return room_.ordered[at].token;
    }
}

// Values below it, all `ids` together, have less weight than `left`: then those that reach it have all the rest. By the
// powers of two only, so that no logarithm is needed; -inf and NaN become kLeast.
double bound_by_weight(double left, uint32_t ids, double largest, double temperature) {
    const double weight = left / ids;
    if (!(weight > 0)) return kLeast;
    uint64_t bits;
    memcpy(&bits, &weight, sizeof bits);
    const double power = static_cast<double>(static_cast<int64_t>(bits >> 52) - 1023);
    const double bound = largest + temperature * (power * 0.6931471805599454);
    return bound > kLeast ? bound : kLeast;
}

uint32_t Choice::draw(rwkvflow_sampler *s, double largest) {
    largest_ = largest;
    temperature_ = s->temperature;
    const uint32_t ids = count_allowed();
    const uint32_t most = s->top_k == 0 || s->top_k > ids ? ids : s->top_k;
    if (s->top_k != 0) {
        collect(bound_of(most), largest);
        reach(most - 1);
        return fall(*s, most, room_.running[most - 1], s->random.below_one());
    }
    const double total = sum(largest, s->temperature), share = s->random.below_one();
    const double left = total - (s->top_p < 1 ? s->top_p : share) * total;
    collect(bound_by_weight(left, ids, largest, s->temperature), largest);
    const uint32_t token = fall(*s, most, total, share);
    if (token != kNoToken) return token;
    collect(kLeast, largest);  // sums are rounded: rarely, they miss the goal by that
    return fall(*s, most, total, share);
}

// The natural logarithm of a finite x >= 1, within 2 units in the last place, and the same everywhere: x = 2^k m with m
// between sqrt(1/2) and sqrt(2), the series of 2 artanh((m - 1) / (m + 1)).
double logarithm(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    double k = static_cast<double>(static_cast<int64_t>(bits >> 52) - 1023), m;
    bits = (bits & 0x000fffffffffffffu) | 0x3ff0000000000000u;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) m *= 0.5, k += 1.0;
    const double s = (m - 1.0) / (m + 1.0), square = s * s;
    double series = 1.0 / 23.0;
    for (int n = 21; n > 0; n -= 2) series = series * square + 1.0 / n;
    return k * 0.693147180369123816490 + (k * 1.90821492927058770002e-10 + 2.0 * s * series);
}

}  // namespace

ChoiceRoom *choice_room(uint32_t size) {
    const uint64_t whole = uint64_t{groups_of(size)} * kGroup;
    ChoiceRoom at = {};
    ChoiceRoom *room = nullptr;
    Arena arena;
    for (int turn = 0; turn < 2; ++turn) {
        arena.used = 0;
        room = arena.take<ChoiceRoom>(1);
        at.size = size;
        at.values = arena.take<double>(whole);
        at.largest = arena.take<double>(groups_of(size));
        at.running = arena.take<double>(size);
        at.found = arena.take<Candidate>(whole);
        at.ordered = arena.take<Candidate>(whole);
        at.ends = arena.take<uint32_t>(kBuckets);
        if (turn == 0) arena.base = static_cast<char *>(aligned_zeroed(arena.used));
        if (arena.base == nullptr) return nullptr;
    }
    *room = at;
    return room;
}

uint32_t choose(const Kernels *kernels, ChoiceRoom *room, rwkvflow_sampler *sampler, const float *logits,
                const uint32_t *allowed) {
    Choice choice(kernels, room, logits, allowed);
    double largest;
    if (!choice.fill(sampler)) return kNoToken;
    uint32_t token = choice.likeliest(&largest);
    if (largest == kNever) return kNoToken;
    if (sampler->temperature != 0) token = choice.draw(sampler, largest);
    sampler->chose(token);
    return token;
}

double rate(const Kernels *kernels, ChoiceRoom *room, const float *logits, const uint32_t *allowed, uint32_t token,
            uint32_t top, uint32_t *top_tokens, double *top_logprobs) {
    Choice all(kernels, room, logits, nullptr);
    for (uint32_t i = 0; i < top; ++i) top_tokens[i] = kNoToken, top_logprobs[i] = __builtin_nan("");
    if (!all.fill(nullptr)) return __builtin_nan("");
    double largest;
    all.likeliest(&largest);
    const double total = largest + logarithm(all.sum(largest, 1.0));
    if (top > 0) {
        Choice some(kernels, room, logits, allowed);
        some.fill(nullptr);
        some.likeliest(&largest);
        const uint32_t count = some.first(top, largest);
        for (uint32_t i = 0; i < count; ++i) {
            top_tokens[i] = some.candidate(i).token;
            top_logprobs[i] = some.candidate(i).value - total;
        }
    }
    return static_cast<double>(logits[token]) - total;
}

}  // namespace rwkvflow
