// rwkv bench: what a model file does on this machine.
#pragma once

// Arguments after "bench". Returns an exit code: 0; 1 when a model fails; 2 for arguments that make no sense.
int bench(int argc, char **argv);
