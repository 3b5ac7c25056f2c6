// How the tool begins: with arguments and settings in UTF-8, and pipes that carry bytes as they are, on every system.
#pragma once

// The tool itself; start.cc has the main function that the system calls.
int run(int argc, char **argv);

// A variable of the environment in UTF-8; null where it is not set. Never freed.
const char *variable(const char *name);
