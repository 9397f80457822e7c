"""``llama-server`` as a program, of llama.cpp's own code in the wheel `xllamacpp`; one thread."""

from __future__ import annotations

import argparse
import signal

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--alias", "--host", "--pooling"):
        parser.add_argument(name)
    for name in ("--port", "--ctx-size"):
        parser.add_argument(name, type=int, default=0)
    parser.add_argument("--embedding", action="store_true")
    args = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias, params.n_ctx = args.model, {args.alias}, args.ctx_size
    params.hostnames, params.port, params.embedding = [args.host], args.port, args.embedding
    if args.pooling == "mean":
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.n_parallel, params.kv_unified, params.warmup = 2, True, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    signal.sigwait({signal.SIGTERM})  # as it is not blocked, it ends the program
    del server


if __name__ == "__main__":
    main()
