int lacking(void) { return 0; }
