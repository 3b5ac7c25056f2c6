// Decoding is bound by memory, so next to times stands the share of this machine's read bandwidth that a token reaches:
// bytes of all weights that a token needs (all tensors but the embedding), divided by its time, against plain reading
// of a large buffer by as many threads in the same run, in the fastest of some ways. A pass over the buffer takes about
// as long as a token, and the two alternate. Medians stand next to the fastest pass and the fastest token: on a machine
// that does other things besides, the fastest of each are what it can do.
//
// Reading a prompt is bound by multiplications. Its share is the time that all products of its matrices would take in a
// loop of nothing but multiply-adds, of floats and of bytes as each type is multiplied, divided by the time taken: of
// one thread in the processor's time, so that other programs disturb it little.
#include "bench.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
// needs what windows.h defines, hence after it
#include <psapi.h>
#else
#include <sys/resource.h>
#endif

#include "limits.h"
#include "rwkvflow.h"

namespace {

constexpr size_t kBuffer = size_t{512} << 20;  // far above any cache
constexpr int kRounds = 12;
constexpr double kRoundSeconds = 0.25;  // of decoding, after each kPasses of reading
constexpr int kPasses = 2 * kWays;
constexpr int kKinds = 3;  // of products
constexpr int kPrefills = 4;
constexpr uint32_t kMost = 1u << 12;  // samples that are kept

double peak_bytes() {
#if defined(_WIN32)
    PROCESS_MEMORY_COUNTERS counters;
    if (!K32GetProcessMemoryInfo(GetCurrentProcess(), &counters, sizeof counters)) return 0;
    return static_cast<double>(counters.PeakWorkingSetSize);
#else
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
#if defined(__APPLE__)
    return static_cast<double>(usage.ru_maxrss);
#else
    return static_cast<double>(usage.ru_maxrss) * 1024;
#endif
#endif
}

int by_size(const void *a, const void *b) {
    const double x = *static_cast<const double *>(a), y = *static_cast<const double *>(b);
    return x < y ? -1 : x > y ? 1 : 0;
}

// Durations in seconds: the smallest and the median.
struct Samples {
    double seconds[kMost];
    uint32_t count;
    void add(double value) {
        if (count < kMost) seconds[count++] = value;
    }
    void sort() { qsort(seconds, count, sizeof *seconds, by_size); }
    double best() const { return seconds[0]; }
    double median() const { return seconds[count / 2]; }
};

struct Options {
    uint32_t threads = rwkvflow_default_threads(), prefill = 256;
    bool json = false;
};

struct Figures {
    char version[8];
    double file_bytes, token_bytes, open_seconds, first_seconds, token_seconds, token_median, prefill_seconds,
        prefill_median, prefill_busy, read_rate, read_median, peak;
    // Of each kind: products of a token's matrices, those of the last token alone, and how many there are a second.
    double products[kKinds], last[kKinds], rates[kKinds];
    double prefill_samples[kPrefills];
    // The share of the prompt's time that its products would take at those rates.
    double prefill_share(uint32_t tokens) const {
        double least = 0;
        for (int i = 0; i < kKinds; ++i)
            if (rates[i] > 0) least += (products[i] * tokens + last[i]) / rates[i];
        return least / prefill_busy;
    }
};

// How matrices of a type are multiplied.
rwkvflow::Products products_of(int32_t type) {
    switch (type) {
        case RWKVFLOW_F32:
        case RWKVFLOW_F16:
        case RWKVFLOW_BF16: return rwkvflow::kFloats;
        case RWKVFLOW_Q4_0:
        case RWKVFLOW_Q4_1:
        case RWKVFLOW_Q5_0:
        case RWKVFLOW_Q5_1:
        case RWKVFLOW_Q4_K:
        case RWKVFLOW_Q5_K: return rwkvflow::kSmallBytes;
        default: return rwkvflow::kBytes;
    }
}

// Products of a matrix; of vectors, which stand in rows or columns of a few, none worth to be counted.
double products_in(const rwkvflow_tensor &tensor) {
    double all = 1;
    for (uint32_t i = 0; i < tensor.n_dims; ++i) all *= static_cast<double>(tensor.dims[i]);
    int wide = 0;
    for (uint32_t i = 0; i < tensor.n_dims; ++i) wide += tensor.dims[i] > 1;
    return wide > 1 ? all : 0;
}

// Bytes of the tensors that every token reads, and products that it takes. Logits are those of the last token alone.
bool count_bytes(const char *path, Figures *out) {
    rwkvflow_file *file = rwkvflow_file_open(path);
    if (file == nullptr) return false;
    rwkvflow_tensor tensor;
    for (uint64_t i = 0; rwkvflow_file_tensor(file, i, &tensor); ++i) {
        out->file_bytes += static_cast<double>(tensor.bytes);
        if (strcmp(tensor.name, "emb.weight") == 0) continue;
        out->token_bytes += static_cast<double>(tensor.bytes);
        double *to = strcmp(tensor.name, "head.weight") == 0 ? out->last : out->products;
        to[products_of(tensor.type)] += products_in(tensor);
    }
    rwkvflow_file_close(file);
    return true;
}

struct Buffers {
    float *state, *logits;
    uint32_t *tokens;
    char *large;
};

bool measure_with(rwkv_context *ctx, const Options &o, const Buffers &b, Figures *out) {
    const size_t vocabulary = rwkv_get_n_vocab(ctx);
    for (uint32_t i = 0; i < o.prefill; ++i)
        b.tokens[i] = static_cast<uint32_t>((i * size_t{2654435761u} + 17) % vocabulary);
    double begin = now();
    if (!rwkv_eval(ctx, b.tokens[0], nullptr, b.state, b.logits)) return false;
    out->first_seconds = now() - begin;
    static Samples reads[kWays], evals;
    for (Samples &each : reads) each.count = 0;
    evals.count = 0;
    uint32_t at = 0;
    for (int round = 0; round < kRounds; ++round) {
        for (int i = 0; i < kPasses; ++i) reads[i % kWays].add(read_once(b.large, kBuffer, o.threads, i % kWays));
        // The buffer has pushed the model out of the caches; two tokens until all is as it will be.
        for (int i = 0; i < 2; ++i) (void)rwkv_eval(ctx, b.tokens[0], b.state, b.state, b.logits);
        double spent = 0;
        for (int count = 0; spent < kRoundSeconds || count < 4; ++count) {
            begin = now();
            if (!rwkv_eval(ctx, b.tokens[at++ % o.prefill], b.state, b.state, b.logits)) return false;
            const double each = now() - begin;
            evals.add(each);
            spent += each;
        }
    }
    evals.sort();
    out->token_seconds = evals.best();
    out->token_median = evals.median();
    for (Samples &each : reads) {
        each.sort();
        if (1 / each.best() <= out->read_rate) continue;
        out->read_rate = 1 / each.best();
        out->read_median = 1 / each.median();
    }
    static Samples prefills;
    prefills.count = 0;
    for (int round = 0; round < kPrefills; ++round) {
        for (int i = 0; i < kKinds; ++i) {
            if (out->products[i] + out->last[i] == 0) continue;
            const double rate = products_once(static_cast<rwkvflow::Products>(i), o.threads);
            out->rates[i] = rate > out->rates[i] ? rate : out->rates[i];
        }
        begin = now();
        const double busy = now_of(o.threads);
        if (!rwkv_eval_sequence(ctx, b.tokens, o.prefill, nullptr, b.state, b.logits)) return false;
        const double worked = now_of(o.threads) - busy;
        if (round == 0 || worked < out->prefill_busy) out->prefill_busy = worked;
        out->prefill_samples[round] = now() - begin;
        prefills.add(out->prefill_samples[round]);
    }
    prefills.sort();
    out->prefill_seconds = prefills.best();
    out->prefill_median = prefills.median();
    out->peak = peak_bytes();
    return true;
}

bool measure(const char *path, const Options &o, char *large, Figures *out) {
    if (!count_bytes(path, out)) return false;
    const double begin = now();
    rwkv_context *ctx = rwkv_init_from_file(path, o.threads, 0);
    out->open_seconds = now() - begin;
    if (ctx == nullptr) return false;
    snprintf(out->version, sizeof out->version, "%s", rwkvflow_get_version(ctx));
    Buffers b = {};
    b.state = static_cast<float *>(malloc(rwkv_get_state_len(ctx) * sizeof(float)));
    b.logits = static_cast<float *>(malloc(rwkv_get_logits_len(ctx) * sizeof(float)));
    b.tokens = static_cast<uint32_t *>(malloc(o.prefill * sizeof(uint32_t)));
    b.large = large;
    bool fine = b.state != nullptr && b.logits != nullptr && b.tokens != nullptr;
    if (!fine) fprintf(stderr, "rwkv: no memory\n");
    fine = fine && measure_with(ctx, o, b, out);
    free(b.state);
    free(b.logits);
    free(b.tokens);
    rwkv_free(ctx);
    return fine;
}

void print_text(const char *text) {
    putchar('"');
    for (; *text != 0; ++text) {
        const unsigned char c = static_cast<unsigned char>(*text);
        if (c < 32) printf("\\u%04x", c);
        else {
            if (c == '"' || c == '\\') putchar('\\');
            putchar(c);
        }
    }
    putchar('"');
}

void print_json(const char *path, const Figures &f, const Options &o, bool first) {
    printf("%s\n    {\"path\": ", first ? "" : ",");
    print_text(path);
    printf(
        ", \"version\": \"%s\", \"file_bytes\": %.0f, \"token_bytes\": %.0f,\n     \"open_ms\": %.3f, "
        "\"first_token_ms\": %.3f, "
        "\"ms_per_token\": %.4f, \"ms_per_token_median\": %.4f, \"tokens_per_second\": %.3f,\n     \"prefill_tokens\": "
        "%u, "
        "\"prefill_tokens_per_second\": %.2f, \"prefill_tokens_per_second_median\": %.2f, \"prefill_share\": %.4f,\n   "
        "  "
        "\"peak_rss_bytes\": %.0f, \"read_bytes_per_second\": %.0f, "
        "\"read_bytes_per_second_median\": %.0f, \"bandwidth_share\": %.4f, \"bandwidth_share_median\": %.4f,\n     "
        "\"float_products_per_second\": %.0f, \"byte_products_per_second\": %.0f, "
        "\"small_byte_products_per_second\": %.0f,\n     \"prefill_ms\": [",
        f.version, f.file_bytes, f.token_bytes, f.open_seconds * 1e3, f.first_seconds * 1e3, f.token_seconds * 1e3,
        f.token_median * 1e3, 1 / f.token_seconds, o.prefill, o.prefill / f.prefill_seconds,
        o.prefill / f.prefill_median, f.prefill_share(o.prefill), f.peak, f.read_rate, f.read_median,
        f.token_bytes / f.token_seconds / f.read_rate, f.token_bytes / f.token_median / f.read_median,
        f.rates[rwkvflow::kFloats], f.rates[rwkvflow::kBytes], f.rates[rwkvflow::kSmallBytes]);
    for (int i = 0; i < kPrefills; ++i) printf("%s%.3f", i == 0 ? "" : ", ", f.prefill_samples[i] * 1e3);
    printf("]}");
}

void print_row(const char *path, const Figures &f, const Options &o, bool first) {
    if (first)
        printf("%8s %8s %9s %7s %8s %10s %7s %8s %9s %8s  model\n", "ms/token", "(median)", "tokens/s", "share",
               "(median)", "prefill/s", "share", "open ms", "first ms", "MB");
    printf("%8.2f %8.2f %9.1f %6.1f%% %7.1f%% %10.1f %6.1f%% %8.1f %9.1f %8.0f  %s\n", f.token_seconds * 1e3,
           f.token_median * 1e3, 1 / f.token_seconds, 100 * f.token_bytes / f.token_seconds / f.read_rate,
           100 * f.token_bytes / f.token_median / f.read_median, o.prefill / f.prefill_seconds,
           100 * f.prefill_share(o.prefill), f.open_seconds * 1e3, f.first_seconds * 1e3, f.peak / 1e6, path);
    fflush(stdout);
}

bool parse_count(const char *text, unsigned long largest, uint32_t *out) {
    char *end;
    const unsigned long value = strtoul(text, &end, 10);
    *out = static_cast<uint32_t>(value);
    return text[0] >= '0' && text[0] <= '9' && *end == 0 && value > 0 && value <= largest;
}

int run(const char *const *paths, int count, const Options &o) {
    char *large = static_cast<char *>(malloc(kBuffer));
    if (large == nullptr) {
        fprintf(stderr, "rwkv: no memory for the bandwidth test\n");
        return 1;
    }
    memset(large, 1, kBuffer);
    int code = 0;
    bool first = true;
    double read_rate = 0, rates[kKinds] = {};
    if (o.json) printf("{\"kernels\": \"%s\", \"threads\": %u, \"models\": [", rwkvflow_get_kernels(), o.threads);
    for (int i = 0; i < count; ++i) {
        Figures figures = {};
        if (!measure(paths[i], o, large, &figures)) {
            code = 1;
            continue;
        }
        figures.peak -= static_cast<double>(kBuffer);  // it was never given back
        (o.json ? print_json : print_row)(paths[i], figures, o, first);
        first = false;
        read_rate = figures.read_rate > read_rate ? figures.read_rate : read_rate;
        for (int k = 0; k < kKinds; ++k) rates[k] = figures.rates[k] > rates[k] ? figures.rates[k] : rates[k];
    }
    if (o.json) {
        printf("\n]}\n");
    } else if (!first) {
        printf("%u threads read memory at %.1f GB/s", o.threads, read_rate / 1e9);
        const char *const names[kKinds] = {"floats", "bytes", "4 to 5 bits"};
        for (int i = 0; i < kKinds; ++i)
            if (rates[i] > 0) printf(", multiply %.0f billion %s a second", rates[i] / 1e9, names[i]);
        printf("; kernels: %s; prefill of %u tokens; all but medians are of the fastest\n", rwkvflow_get_kernels(),
               o.prefill);
    }
    free(large);
    return code;
}

}  // namespace

int bench(int argc, char **argv) {
    Options o;
    int count = 0;  // models are moved to the front of argv
    for (int i = 0; i < argc; ++i) {
        const bool threads = strcmp(argv[i], "--threads") == 0;
        if (strcmp(argv[i], "--json") == 0) {
            o.json = true;
        } else if (threads || strcmp(argv[i], "--prefill") == 0) {
            if (i + 1 == argc ||
                !parse_count(argv[i + 1], threads ? 256 : 1u << 20, threads ? &o.threads : &o.prefill)) {
                fprintf(stderr, "rwkv: a number must follow %s\n", argv[i]);
                return 2;
            }
            ++i;
        } else if (argv[i][0] == '-') {
            fprintf(stderr, "rwkv: unknown option: %s\n", argv[i]);
            return 2;
        } else {
            argv[count++] = argv[i];
        }
    }
    if (count == 0) {
        fprintf(stderr, "rwkv: bench needs a model\n");
        return 2;
    }
    return run(argv, count, o);
}
