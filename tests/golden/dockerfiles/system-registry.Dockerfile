# Made by rwkvflow; change the recipe instead of this file.
# Base: registry.example:5000/team/python@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
# stage.py: sha256:7e7b2cad1062a01350202fe0e4e1cf26494330a8134e661e7182e78261a35d0d
FROM registry.example:5000/team/python@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef AS base
USER 0:0
ENTRYPOINT []
LABEL "org.rwkvflow.stage"="build"
ENV "LANG"="C.UTF-8" "LC_ALL"="C.UTF-8" "TZ"="UTC" "SOURCE_DATE_EPOCH"="1704067200" "PYTHONDONTWRITEBYTECODE"="1" "PYTHONHASHSEED"="0" "PYTHONNOUSERSITE"="1" "PYTHONUNBUFFERED"="1"
COPY stage.py /rwkvflow/
RUN ["python3", "/rwkvflow/stage.py", "check-python", "3.12"]

# What the worker imports: the files of its wheels, each held against the lock when it was unpacked, and nothing else.
FROM base AS wheels
COPY worker/ /opt/rwkvflow/site/
RUN ["python3", "/rwkvflow/stage.py", "compile", "/opt/rwkvflow/site"]

# The base image's own compiler and CMake.
FROM base AS toolchain
RUN ["python3", "/rwkvflow/stage.py", "check-toolchain"]

# Engine custom, built by a user that is not root.
FROM toolchain AS engine-custom
ENV "PYTHONPATH"="/opt/rwkvflow/code" "HOME"="/tmp"
WORKDIR /job
RUN ["python3", "/rwkvflow/stage.py", "own", "/job/out", "65534:65534"]
COPY code/ /opt/rwkvflow/code/
COPY engines/custom/ /job/in/source/
COPY requests/custom.json /job/in/request.json
USER 65534:65534
RUN ["python3", "-m", "rwkvflow.worker", "in/request.json"]

# Engine librwkv, built by a user that is not root.
FROM toolchain AS engine-librwkv
ENV "PYTHONPATH"="/opt/rwkvflow/code" "HOME"="/tmp"
WORKDIR /job
RUN ["python3", "/rwkvflow/stage.py", "own", "/job/out", "65534:65534"]
COPY code/ /opt/rwkvflow/code/
COPY engines/librwkv/ /job/in/source/
COPY requests/librwkv.json /job/in/request.json
USER 65534:65534
RUN ["python3", "-m", "rwkvflow.worker", "in/request.json"]

# What runs: interpreter, wheels, code and engines. No compiler and no installer.
FROM wheels AS worker
COPY --from=engine-custom /job/out/engine /opt/rwkvflow/engine/custom
COPY --from=engine-librwkv /job/out/engine /opt/rwkvflow/engine/librwkv
COPY code/ /opt/rwkvflow/code/
ENV "PYTHONPATH"="/opt/rwkvflow/code:/opt/rwkvflow/site" "HOME"="/tmp"
WORKDIR /job/in
WORKDIR /job/out
WORKDIR /job
LABEL "org.opencontainers.image.base.digest"="sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
LABEL "org.opencontainers.image.base.name"="registry.example:5000/team/python:3.12-slim"
LABEL "org.opencontainers.image.description"="Converts and verifies RWKV checkpoints; runs without network"
LABEL "org.opencontainers.image.title"="rwkvflow worker"
LABEL "org.rwkvflow.engine"="sha256:3"
LABEL "org.rwkvflow.lock"="sha256:2"
LABEL "org.rwkvflow.recipe"="sha256:1"
LABEL "org.rwkvflow.stage"="worker"
USER 65534:65534
CMD ["python3"]
