# Made by rwkvflow; change the recipe instead of this file.
# Base: registry.example:5000/team/python@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
# stage.py: sha256:980fcd639beed175111c0465f56b599e5b6030917a147a5a8a635bd4fb6cc6d4
FROM registry.example:5000/team/python@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef AS base
USER 0:0
ENTRYPOINT []
LABEL "org.rwkvflow.stage"="build"
ENV "LANG"="C.UTF-8" "LC_ALL"="C.UTF-8" "TZ"="UTC" "SOURCE_DATE_EPOCH"="1704067200" "PYTHONDONTWRITEBYTECODE"="1" "PYTHONHASHSEED"="0" "PYTHONNOUSERSITE"="1" "PYTHONUNBUFFERED"="1"
COPY base/ /
RUN ["python3", "/rwkvflow/stage.py", "check-python", "3.12"]
RUN ["python3", "/rwkvflow/stage.py", "rooms"]

# What the worker imports: the files of its wheels, each held against the lock when it was unpacked, and nothing else.
FROM base AS wheels
COPY worker/ /
RUN ["python3", "/rwkvflow/stage.py", "compile", "/opt/rwkvflow/site"]

# The base image's own compiler and CMake.
FROM base AS toolchain
RUN ["python3", "/rwkvflow/stage.py", "check-toolchain"]

# Engine custom, built by a user that is not root.
FROM toolchain AS engine-custom
ENV "PYTHONPATH"="/opt/rwkvflow/code" "HOME"="/tmp"
WORKDIR /job
RUN ["python3", "/rwkvflow/stage.py", "own", "/job/out", "65534:65534"]
COPY code/ /
COPY engines/custom/ /job/in/source/
COPY requests/custom.json /job/in/request.json
USER 65534:65534
RUN ["python3", "-m", "rwkvflow.worker", "in/request.json"]
USER 0:0
RUN ["python3", "/rwkvflow/stage.py", "place", "/job/out/engine", "/made", "opt/rwkvflow/engine/custom"]

# Engine librwkv, built by a user that is not root.
FROM toolchain AS engine-librwkv
ENV "PYTHONPATH"="/opt/rwkvflow/code" "HOME"="/tmp"
WORKDIR /job
RUN ["python3", "/rwkvflow/stage.py", "own", "/job/out", "65534:65534"]
COPY code/ /
COPY engines/librwkv/ /job/in/source/
COPY requests/librwkv.json /job/in/request.json
USER 65534:65534
RUN ["python3", "-m", "rwkvflow.worker", "in/request.json"]
USER 0:0
RUN ["python3", "/rwkvflow/stage.py", "place", "/job/out/engine", "/made", "opt/rwkvflow/engine/librwkv"]

# What runs: interpreter, wheels, code and engines. No compiler and no installer. The same bytes wherever it is built:
# what is copied stands below the root with its folders, whose times would be today's otherwise.
FROM wheels AS worker
COPY --from=engine-custom /made/ /
COPY --from=engine-librwkv /made/ /
COPY code/ /
ENV "PYTHONPATH"="/opt/rwkvflow/code:/opt/rwkvflow/site" "HOME"="/tmp"
WORKDIR /job
LABEL "org.opencontainers.image.base.digest"="sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" "org.opencontainers.image.base.name"="registry.example:5000/team/python:3.12-slim" "org.opencontainers.image.description"="Converts and verifies RWKV checkpoints; runs without network" "org.opencontainers.image.title"="rwkvflow worker" "org.rwkvflow.engine"="sha256:3" "org.rwkvflow.lock"="sha256:2" "org.rwkvflow.recipe"="sha256:1" "org.rwkvflow.stage"="worker"
USER 65534:65534
CMD ["python3"]
