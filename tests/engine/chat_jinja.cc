// Renders chat templates with llama.cpp's own Jinja, for tests: one JSON object {"template", "values"} a line of
// standard input, one line of JSON of standard output for each, the text or {"error"}.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>

#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"
#include "json.h"

// What json.cpp calls where an assertion fails; the rest of ggml is not needed.
extern "C" [[noreturn]] void ggml_abort(const char *file, int line, const char *format, ...) {
    std::fprintf(stderr, "%s:%d: %s\n", file, line, format);
    std::abort();
}

static std::string rendered(const common_json &asked) {
    const std::string source = asked["template"].get<std::string>();
    jinja::lexer lexer;
    jinja::program program = jinja::parse_from_tokens(lexer.tokenize(source));
    jinja::context context(source);
    jinja::global_from_json(context, asked["values"], false);
    jinja::runtime runtime(context);
    return jinja::runtime::gather_string_parts(runtime.execute(program))->as_string().str();
}

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        try {
            std::cout << common_json::make(rendered(common_json::parse(line))).dump() << '\n';
        } catch (const std::exception &error) {
            const common_json out = common_json{{"error", std::string(error.what())}};
            std::cout << out.dump_safe() << '\n';
        }
    }
    return 0;
}
