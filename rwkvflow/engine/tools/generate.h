// rwkv generate: how a text goes on.
#pragma once

// Arguments after "generate". Returns an exit code: 0; 1 when something fails; 2 for arguments that make no sense.
int generate(int argc, char **argv);
