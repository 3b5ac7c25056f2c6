"""How artifacts are run or read by the software that is theirs, one module a format; see worker.consumers."""
