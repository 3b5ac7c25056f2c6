const char *stubborn(void) { return GREETING; }
