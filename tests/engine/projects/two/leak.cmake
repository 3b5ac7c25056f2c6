file(WRITE leak.c "const char *leak(void) { return \"${HERE}/data\"; }\n")
