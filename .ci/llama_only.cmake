# Included at llama.cpp's project(): builds the library alone, without the parts of its programs,
# which llama-cpp-python compiles too and does not load.
set(LLAMA_BUILD_COMMON OFF)
