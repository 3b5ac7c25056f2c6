// The rwkv tool: a model file without Python.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/affinity.h"
#include "base/named.h"
#include "bench.h"
#include "generate.h"
#include "kernels/common/kernels.h"
#include "model/file.h"
#include "rwkvflow.h"
#include "start.h"

namespace {

const char *const kUsage =
    "usage: a MODEL is a .bin of rwkv.cpp or a .gguf of llama.cpp (rwkv6, rwkv7)\n"
    "  rwkv eval MODEL TOKEN... [--state-in FILE] [--state-out FILE] [--logits FILE] [--threads N] [--group-norm-eps "
    "E]\n"
    "      evaluates tokens; states and logits are files of little-endian float32; without --logits the five best are "
    "shown\n"
    "  rwkv generate MODEL [PROMPT | -] [-n TOKENS] [--temperature T] [--top-p P] [--top-k K] [--presence-penalty X]\n"
    "      [--frequency-penalty X] [--penalty-decay D] [--seed N] [--stop TEXT]... [--vocab FILE] [--state FILE]\n"
    "      [--save-state FILE] [--threads N] [--group-norm-eps E] [-v]\n"
    "      how the prompt goes on; models of World and 20B need their vocabulary: --vocab, RWKV_VOCAB, or beside the "
    "model; a GGUF has its own\n"
    "  rwkv inspect MODEL        sizes, types and shapes\n"
    "  rwkv quantize IN OUT TYPE Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K or Q5_K\n"
    "  rwkv bench MODEL... [--threads N] [--prefill TOKENS] [--json]\n"
    "      times, memory, and the share of this machine's read bandwidth; 256 tokens unless told\n"
    "  rwkv info                 what this build and this processor can do, and where threads are put\n"
    "--threads: as many as this process has performance cores, unless told; RWKV_PIN=0 lets the system place them.\n"
    "RWKV_KERNELS=SET forces kernels, one of those that info names; RWKV_GROUP_NORM_EPS is the default of "
    "--group-norm-eps.\n";

int complain(const char *what, const char *which) {
    fprintf(stderr, "rwkv: %s%s%s\n", what, which[0] == 0 ? "" : ": ", which);
    return 2;
}

bool parse_number(const char *text, unsigned long largest, unsigned long *out) {
    char *end;
    *out = strtoul(text, &end, 10);
    return text[0] >= '0' && text[0] <= '9' && *end == 0 && *out <= largest;
}

bool read_floats(const char *path, float *to, size_t count) {
    FILE *file = rwkvflow::open_named(path, "rb");
    if (file == nullptr) return false;
    const bool fine = fread(to, sizeof(float), count, file) == count && fgetc(file) == EOF;
    fclose(file);
    return fine;
}

bool write_floats(const char *path, const float *from, size_t count) {
    FILE *file = rwkvflow::open_named(path, "wb");
    if (file == nullptr) return false;
    const bool fine = fwrite(from, sizeof(float), count, file) == count;
    return fclose(file) == 0 && fine;
}

void show_best(const float *logits, size_t count) {
    size_t shown[5];
    for (size_t n = 0; n < 5 && n < count; ++n) {
        size_t best = count;
        for (size_t i = 0; i < count; ++i) {
            bool used = false;
            for (size_t j = 0; j < n; ++j) used = used || shown[j] == i;
            if (!used && (best == count || logits[i] > logits[best])) best = i;
        }
        shown[n] = best;
        printf("%8zu  %.6f\n", best, static_cast<double>(logits[best]));
    }
}

struct EvalOptions {
    const char *model = nullptr, *state_in = nullptr, *state_out = nullptr, *logits = nullptr;
    unsigned long threads = 0;  // as many as suit this machine
    double eps = 0;
    uint32_t *tokens = nullptr;
    size_t count = 0;
};

int parse_eval(int argc, char **argv, EvalOptions *o) {
    const char *eps = getenv("RWKV_GROUP_NORM_EPS");
    for (int i = 0; i < argc; ++i) {
        const char *arg = argv[i];
        unsigned long number;
        if (arg[0] == '-') {
            if (i + 1 == argc) return complain("a value is missing after", arg);
            const char *value = argv[++i];
            if (strcmp(arg, "--state-in") == 0) o->state_in = value;
            else if (strcmp(arg, "--state-out") == 0) o->state_out = value;
            else if (strcmp(arg, "--logits") == 0) o->logits = value;
            else if (strcmp(arg, "--group-norm-eps") == 0) eps = value;
            else if (strcmp(arg, "--threads") == 0) {
                if (!parse_number(value, 256, &o->threads) || o->threads == 0)
                    return complain("not a number of threads", value);
            } else return complain("unknown option", arg);
        } else if (o->model == nullptr) {
            o->model = arg;
        } else {
            if (!parse_number(arg, 0xffffffffu, &number)) return complain("not a token", arg);
            o->tokens[o->count++] = static_cast<uint32_t>(number);
        }
    }
    if (o->model == nullptr || o->count == 0) return complain("eval needs a model and a token", "");
    if (eps != nullptr && eps[0] != 0) {
        char *end;
        o->eps = strtod(eps, &end);
        if (*end != 0 || !(o->eps > 0)) return complain("not an eps", eps);
    }
    return 0;
}

int eval_with(rwkv_context *ctx, const EvalOptions &o) {
    const size_t n_state = rwkv_get_state_len(ctx), n_logits = rwkv_get_logits_len(ctx);
    float *state = static_cast<float *>(malloc(n_state * sizeof(float)));
    float *logits = static_cast<float *>(malloc(n_logits * sizeof(float)));
    int code = 1;
    if (state == nullptr || logits == nullptr) {
        complain("no memory for the state", "");
    } else if (o.state_in != nullptr && !read_floats(o.state_in, state, n_state)) {
        complain("not a state of this model", o.state_in);
    } else if ((o.eps == 0 || rwkvflow_set_option(ctx, "group_norm_eps", o.eps)) &&
               rwkv_eval_sequence(ctx, o.tokens, o.count, o.state_in != nullptr ? state : nullptr, state, logits)) {
        code = 0;
        if (o.state_out != nullptr && !write_floats(o.state_out, state, n_state))
            code = complain("cannot write", o.state_out);
        if (o.logits == nullptr) show_best(logits, n_logits);
        else if (!write_floats(o.logits, logits, n_logits)) code = complain("cannot write", o.logits);
    }
    free(state);
    free(logits);
    return code;
}

int eval(int argc, char **argv) {
    EvalOptions o;
    o.tokens = static_cast<uint32_t *>(malloc((static_cast<size_t>(argc) + 1) * sizeof(uint32_t)));
    if (o.tokens == nullptr) return complain("no memory", "");
    int code = parse_eval(argc, argv, &o);
    if (code == 0) {
        const uint32_t threads = o.threads == 0 ? rwkvflow_default_threads() : static_cast<uint32_t>(o.threads);
        rwkv_context *ctx = rwkv_init_from_file(o.model, threads, 0);
        code = ctx == nullptr ? 1 : eval_with(ctx, o);
        rwkv_free(ctx);
    }
    free(o.tokens);
    return code;
}

const char *name_of(int32_t type) {
    const char *name = rwkvflow::type_name(type);
    return name == nullptr ? "?" : name;
}

int inspect(const char *path) {
    rwkvflow_file *file = rwkvflow_file_open(path);
    if (file == nullptr) return 1;
    int32_t header[6];
    rwkvflow_file_header(file, header);
    rwkv_context *ctx = rwkv_init_from_file(path, 1, 0);
    printf("file version %d, %s, RWKV %s\n", header[1], name_of(header[5]),
           ctx == nullptr ? "?" : rwkvflow_get_version(ctx));
    printf("vocabulary %d, width %d, layers %d\n", header[2], header[3], header[4]);
    if (ctx != nullptr) printf("state %zu floats\n", rwkv_get_state_len(ctx));
    rwkvflow_tensor tensor;
    for (uint64_t i = 0; rwkvflow_file_tensor(file, i, &tensor); ++i) {
        printf("%-40s %-5s [", tensor.name, name_of(tensor.type));
        for (uint32_t d = 0; d < tensor.n_dims; ++d)
            printf("%s%llu", d == 0 ? "" : ", ", static_cast<unsigned long long>(tensor.dims[d]));
        printf("]\n");
    }
    const int code = ctx == nullptr ? 1 : 0;
    rwkv_free(ctx);
    rwkvflow_file_close(file);
    return code;
}

// The sets of kernels in this build.
void show_sets() {
    size_t count;
    const rwkvflow::KernelSet *sets = rwkvflow::kernel_sets(&count);
    const char *before = "SETS=";
    for (size_t i = 0; i < count; ++i) {
        if (sets[i].table == nullptr) continue;
        printf("%s%s", before, sets[i].name);
        before = ",";
    }
    puts("");
}

// The processors that this process may use, how many threads it uses unless told, and where it keeps those.
void show_processors() {
    static rwkvflow::Processors p;
    if (!rwkvflow::processors_here(&p)) {
        printf("THREADS=%u\n", rwkvflow_default_threads());
        return;
    }
    const uint32_t threads = rwkvflow_default_threads(), here = rwkvflow::processor_here();
    printf("CPUS=%u CORES=%u PERFORMANCE=%u NODES=%u ", p.count, p.cores, p.performance, p.nodes);
    if (p.quota > 0) printf("QUOTA=%.2f ", p.quota);
    printf("THREADS=%u PINNED=", threads);
    rwkvflow::CpuSet all;
    bool placed = false;
    for (uint32_t i = 0; i < threads && rwkvflow::pinning_wanted(); ++i) {
        rwkvflow::CpuSet where;
        if (!rwkvflow::place_thread(p, threads, i, here, &where)) continue;
        placed = true;
        for (size_t word = 0; word < rwkvflow::kMostCpus / 64; ++word) all.bits[word] |= where.bits[word];
    }
    static char text[8192];
    rwkvflow::format_cpus(all, text, sizeof text);
    puts(placed ? text : "no");
}

}  // namespace

int run(int argc, char **argv) {
    const char *command = argc > 1 ? argv[1] : "";
    if (strcmp(command, "eval") == 0) return eval(argc - 2, argv + 2);
    if (strcmp(command, "bench") == 0) return bench(argc - 2, argv + 2);
    if (strcmp(command, "generate") == 0) return generate(argc - 2, argv + 2);
    if (strcmp(command, "inspect") == 0 && argc == 3) return inspect(argv[2]);
    if (strcmp(command, "quantize") == 0 && argc == 5)
        return rwkv_quantize_model_file(argv[2], argv[3], argv[4]) ? 0 : 1;
    if (strcmp(command, "info") == 0 && argc == 2) {
        show_sets();
        show_processors();
        puts(rwkv_get_system_info_string());
        return 0;
    }
    const bool help = strcmp(command, "--help") == 0 || strcmp(command, "help") == 0;
    fputs(kUsage, help ? stdout : stderr);
    return help ? 0 : 2;
}
