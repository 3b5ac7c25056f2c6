/* What programs for Windows ask of it, and wine 8 has not: bcryptprimitives.dll, and two functions of ucrtbase.dll.
 *
 * Rust's library takes its random numbers from ProcessPrng, so that nothing made of Rust could be loaded (pydantic,
 * tokenizers, ...); numpy asks for the parts of a complex number when it is imported, where wine ends the program. */
#include <string.h>
#include <windows.h>

BOOLEAN NTAPI SystemFunction036(PVOID buffer, ULONG length); /* RtlGenRandom, of advapi32 */

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T length) {
    while (length) {
        ULONG some = length > (1 << 20) ? 1 << 20 : (ULONG)length;
        if (!SystemFunction036(data, some)) return FALSE;
        data += some;
        length -= some;
    }
    return TRUE;
}

typedef struct { /* as Windows hands over a complex float: in one register */
    float re, im;
} ComplexFloat;

static float real_part(ComplexFloat z) { return z.re; }
static float imaginary_part(ComplexFloat z) { return z.im; }

/* Writes a jump over wine's stub of a function of ucrtbase.dll, which would end the program. */
static void put(const char* name, float (*function)(ComplexFloat)) {
    unsigned char jump[12] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0}; /* mov rax, function; jmp rax */
    void* stub = (void*)GetProcAddress(GetModuleHandleA("ucrtbase.dll"), name);
    DWORD before;
    memcpy(jump + 2, &function, sizeof function);
    if (stub && VirtualProtect(stub, sizeof jump, PAGE_EXECUTE_READWRITE, &before)) memcpy(stub, jump, sizeof jump);
}

BOOL WINAPI DllMain(HINSTANCE self, DWORD reason, LPVOID unused) {
    (void)self;
    (void)unused;
    if (reason == DLL_PROCESS_ATTACH) {
        put("crealf", real_part);
        put("cimagf", imaginary_part);
    }
    return TRUE;
}
