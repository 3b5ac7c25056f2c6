// Decoding is bound by memory, so next to times stands the share of this machine's read bandwidth that a token reaches:
// bytes of all weights that a token needs (all tensors but the embedding), divided by its time, against a plain
// streaming read of a large buffer by as many threads in the same run. A pass over the buffer takes about as long as a
// token, and the two alternate. Medians stand next to the fastest pass and the fastest token: on a machine that does
// other things besides, the fastest of each are what it can do.
#include "bench.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
// needs what windows.h defines, hence after it
#include <psapi.h>
#else
#include <sys/resource.h>
#endif

#include "rwkvflow.h"

namespace {

constexpr size_t kBuffer = size_t{512} << 20;  // far above any cache
constexpr int kRounds = 12;
constexpr double kRoundSeconds = 0.25;  // of decoding, after each kPasses of reading
constexpr int kPasses = 4;
constexpr uint32_t kMost = 1u << 12;  // samples that are kept

double now() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

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

// One thread's part of the buffer, summed so that it is really read.
struct Reader {
    const char *data;
    size_t bytes;
    uint64_t sum;
    pthread_t thread;
};

typedef uint64_t Wide __attribute__((vector_size(64)));

void *read_all(void *argument) {
    Reader *reader = static_cast<Reader *>(argument);
    Wide sums[4] = {};
    for (size_t at = 0; at + sizeof sums <= reader->bytes; at += sizeof sums) {
        Wide values[4];
        // Asked for ahead, as the engine does: without that a single thread leaves some of the bandwidth unused.
        for (size_t line = 0; line < sizeof values; line += 64) __builtin_prefetch(reader->data + at + 4096 + line);
        memcpy(values, reader->data + at, sizeof values);
        for (int i = 0; i < 4; ++i) sums[i] += values[i];
    }
    const Wide all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    reader->sum = all[0] ^ all[1] ^ all[2] ^ all[3] ^ all[4] ^ all[5] ^ all[6] ^ all[7];
    return nullptr;
}

// Seconds a byte of one pass over the buffer.
double read_once(const char *buffer, uint32_t threads) {
    static Reader readers[256];
    const size_t share = kBuffer / threads / 4096 * 4096;
    const double begin = now();
    uint32_t started = 1;
    for (uint32_t i = 0; i < threads; ++i) readers[i] = {buffer + share * i, share, 0, {}};
    for (; started < threads; ++started)
        if (pthread_create(&readers[started].thread, nullptr, read_all, &readers[started]) != 0) break;
    read_all(&readers[0]);
    for (uint32_t i = 1; i < started; ++i) pthread_join(readers[i].thread, nullptr);
    return (now() - begin) / (static_cast<double>(share) * started);
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
    uint32_t threads = 2, prefill = 256;
    bool json = false;
};

struct Figures {
    char version[8];
    double file_bytes, token_bytes, open_seconds, first_seconds, token_seconds, token_median, prefill_seconds,
        read_rate, read_median, peak;
};

// Bytes of the tensors that every token reads.
bool count_bytes(const char *path, Figures *out) {
    rwkvflow_file *file = rwkvflow_file_open(path);
    if (file == nullptr) return false;
    rwkvflow_tensor tensor;
    for (uint64_t i = 0; rwkvflow_file_tensor(file, i, &tensor); ++i) {
        out->file_bytes += static_cast<double>(tensor.bytes);
        if (strcmp(tensor.name, "emb.weight") != 0) out->token_bytes += static_cast<double>(tensor.bytes);
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
    static Samples reads, evals;
    reads.count = evals.count = 0;
    uint32_t at = 0;
    for (int round = 0; round < kRounds; ++round) {
        for (int i = 0; i < kPasses; ++i) reads.add(read_once(b.large, o.threads));
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
    reads.sort();
    evals.sort();
    out->token_seconds = evals.best();
    out->token_median = evals.median();
    out->read_rate = 1 / reads.best();
    out->read_median = 1 / reads.median();
    for (int round = 0; round < 4; ++round) {
        begin = now();
        if (!rwkv_eval_sequence(ctx, b.tokens, o.prefill, nullptr, b.state, b.logits)) return false;
        const double spent = now() - begin;
        if (round == 0 || spent < out->prefill_seconds) out->prefill_seconds = spent;
    }
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
        "\"prefill_tokens_per_second\": %.2f, \"peak_rss_bytes\": %.0f,\n     \"read_bytes_per_second\": %.0f, "
        "\"read_bytes_per_second_median\": %.0f, \"bandwidth_share\": %.4f, \"bandwidth_share_median\": %.4f}",
        f.version, f.file_bytes, f.token_bytes, f.open_seconds * 1e3, f.first_seconds * 1e3, f.token_seconds * 1e3,
        f.token_median * 1e3, 1 / f.token_seconds, o.prefill, o.prefill / f.prefill_seconds, f.peak, f.read_rate,
        f.read_median, f.token_bytes / f.token_seconds / f.read_rate, f.token_bytes / f.token_median / f.read_median);
}

void print_row(const char *path, const Figures &f, const Options &o, bool first) {
    if (first)
        printf("%8s %8s %9s %7s %8s %10s %8s %9s %8s  model\n", "ms/token", "(median)", "tokens/s", "share", "(median)",
               "prefill/s", "open ms", "first ms", "MB");
    printf("%8.2f %8.2f %9.1f %6.1f%% %7.1f%% %10.1f %8.1f %9.1f %8.0f  %s\n", f.token_seconds * 1e3,
           f.token_median * 1e3, 1 / f.token_seconds, 100 * f.token_bytes / f.token_seconds / f.read_rate,
           100 * f.token_bytes / f.token_median / f.read_median, o.prefill / f.prefill_seconds, f.open_seconds * 1e3,
           f.first_seconds * 1e3, f.peak / 1e6, path);
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
    double read_rate = 0;
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
    }
    if (o.json) printf("\n]}\n");
    else if (!first)
        printf(
            "%u threads read memory at %.1f GB/s; kernels: %s; prefill of %u tokens; all but medians are of the "
            "fastest\n",
            o.threads, read_rate / 1e9, rwkvflow_get_kernels(), o.prefill);
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
