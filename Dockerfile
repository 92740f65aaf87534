# The command, the page and training in one image:
#
#   docker build -t upsr .                                   # for CPUs
#   docker build -t upsr-cuda --build-arg DEVICE=cuda12 .    # for Nvidia GPUs; or cuda13, tpu
#   docker run --rm -v "$PWD:/data" upsr upscale /data/photo.jpg --out /data/large.png
#   docker run --rm -p 127.0.0.1:7860:7860 -e UPSR_TOKEN=secret upsr serve --host 0.0.0.0
#   docker run --rm --gpus all -v /runs:/runs --entrypoint python upsr-cuda \
#       -m upsr_jax.main --config realsr_x4 --workdir /runs/realsr_x4
#
# JAX brings its own CUDA libraries; of the host it needs the driver alone.
FROM python:3.11-slim

ARG DEVICE=""
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir -c scripts/constraints.txt \
        -e ".[photos,hub,serve,train${DEVICE:+,$DEVICE}]"
# Compiled programs are kept where any user can write.
ENV XDG_CACHE_HOME=/tmp/cache
ENTRYPOINT ["upsr"]
CMD ["--help"]
