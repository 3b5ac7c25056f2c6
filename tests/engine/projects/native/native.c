#include CONFIG_HEADER

const char *helper_file(void);

const char *native_paths(int which) {
  switch (which) {
    case 0: return __FILE__;
    case 1: return BUILT_IN;
    case 2: return FROM;
    case 3: return DATA_FOLDER;
    default: return helper_file();
  }
}

int native_width(void) { return WIDTH; }

/* 1 where the compiler was told of an instruction set beyond the baseline. */
int native_beyond_baseline(void) {
#if defined(__AVX__) || defined(__ARM_FEATURE_SVE)
  return 1;
#else
  return 0;
#endif
}
