"""
A server without a model: it logs what vLLM or SGLang log, and speaks their API with its quirks.

A program of its own.  What it is called with says which of both it is; what it is to do stands in
the variable FAKE, a JSON object, and in the last message it gets.  A token is a word.

    log         lines of a load
    exit        ends with this code instead of serving
    silent      never serves
    stubborn    does not end on SIGTERM
    orphan      starts a process in a session of its own
    sick        a path: while that file is there, no GET is answered
    short_lived a path: `exit`, `log` and `silent` hold from the second start on
    record      a path: a line of JSON for its start, each request, and each client that left
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAKE = json.loads(os.environ.get("FAKE", "{}"))
LOCK = threading.Lock()
VLLM = """\
(APIServer pid=7) INFO 11-24 11:43:40 [api_server.py:1639] vLLM API server version 0.12.0
(EngineCore_DP0 pid=9) INFO 11-24 11:43:44 [gpu_model_runner.py:2634] Starting to load model m...
Loading safetensors checkpoint shards:   0% Completed | 0/5 [00:00<?, ?it/s]\r\
Loading safetensors checkpoint shards:  40% Completed | 2/5 [00:01<00:01,  1.45it/s]\r\
Loading safetensors checkpoint shards: 100% Completed | 5/5 [00:02<00:00,  2.45it/s]
(EngineCore_DP0 pid=9) INFO 11-24 11:43:54 [runner.py:3341] Model loading took 2.0 GiB memory
(EngineCore_DP0 pid=9) INFO 11-24 11:44:06 [backends.py:255] Dynamo bytecode transform time: 6.07 s
(EngineCore_DP0 pid=9) INFO 11-24 11:44:17 [gpu_worker.py:348] Available KV cache memory: 3.5 GiB
Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  50%|###   | 25/50 [00:01<00:01, 33.4it/s]
(APIServer pid=7) INFO 11-24 11:44:21 [api_server.py:1966] Starting vLLM API server 0 on http://x
"""
SGLANG = """\
[2026-03-24 16:25:19 TP0] Load weight begin. avail mem=79.11 GB
Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:01<00:00,  1.94s/it]
[2026-03-24 16:25:25 TP0] Load weight end. type=Q, avail mem=77.9 GB, mem usage=1.5 GB.
[2026-03-24 16:25:25 TP0] KV Cache is allocated. #tokens: 567146, K size: 2.0 GB, V size: 2.0 GB
[2026-03-24 16:25:25 TP0] Capture cuda graph begin. This can take up to several minutes.
Capturing batches (bs=1 avail_mem=38.07 GB): 100%|#########| 52/52 [00:04<00:00, 10.83it/s]
[2026-03-24 16:25:33] INFO:     Uvicorn running on http://x (Press CTRL+C to quit)
"""
METRICS = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m} x"} 2.0
vllm:num_requests_running{engine="1",model_name="m} x"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m} x"} 4.0
vllm:kv_cache_usage_perc{engine="0",model_name="m} x"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="m} x"} 200.0
vllm:prefix_cache_hits_total{engine="0",model_name="m} x"} 150.0
vllm:num_preemptions_total nonsense
sglang:num_running_reqs{model_name="m"} 7.0
sglang:cache_hit_rate{model_name="m"} 0.5
"""
THOUGHTS, CALL = ["Hm", " well"], ('{"where":', ' "Rome"}')
LOGPROB = {"token": "one", "logprob": -0.5, "bytes": [111, 110, 101], "top_logprobs": []}


def argument(*names: str) -> str:
    return next((sys.argv[n + 1] for n, said in enumerate(sys.argv) if said in names), "")


MODEL = argument("--served-model-name")
IS_VLLM = "--model-path" not in sys.argv


def record(**what: object) -> None:
    if path := FAKE.get("record"):
        with LOCK, Path(path).open("a") as file:
            file.write(json.dumps(what) + "\n")


def is_sick() -> bool:
    return "sick" in FAKE and Path(FAKE["sick"]).exists()


def prompt_tokens(body: dict) -> int:
    """Count words, and one for each turn and tool."""
    if isinstance(body.get("prompt"), list):
        return len(body["prompt"])
    if "prompt" in body:
        return len(body["prompt"].split())
    words = [word for turn in body["messages"] for word in str(turn["content"]).split()]
    return len(words) + len(body["messages"]) + len(body.get("tools") or ())


def script(body: dict) -> list[dict]:
    """Return the deltas of an answer."""
    if "prompt" in body:
        said = body["prompt"] if isinstance(body["prompt"], str) else "some text"
    else:
        said = str(body["messages"][-1]["content"])
    if body.get("tools"):
        call = {"index": 0, "id": "call_1", "type": "function"}
        return [
            {"tool_calls": [{**call, "function": {"name": "go", "arguments": ""}}]},
            *({"tool_calls": [{"index": 0, "function": {"arguments": a}}]} for a in CALL),
        ]
    words = [{"content": f" {word}" if n else word} for n, word in enumerate(said.split())]
    thoughts = [{"reasoning_content": text} for text in THOUGHTS if "think" in said]
    return [*thoughts, *words]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if is_sick():
            time.sleep(60)
        if self.path == "/health":
            self.reply({} if IS_VLLM else "", 200)
        elif self.path == "/metrics":
            self.reply(METRICS, raw=True)
        elif self.path == "/v1/models":
            self.reply({"data": [{"id": MODEL, "max_model_len": 512}]})
        else:
            self.reply({"detail": "Not Found"}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        record(path=self.path, body=body)
        if self.path == "/tokenize":
            if "messages" in body and not IS_VLLM:
                self.reply({"object": "error", "message": "no prompt", "code": 400}, 400)
            else:
                self.reply({"count": prompt_tokens(body), "max_model_len": 512, "tokens": []})
        elif self.path == "/detokenize":
            self.reply({"prompt" if IS_VLLM else "text": f"{len(body['tokens'])} tokens"})
        elif self.path == "/v1/embeddings":
            rows = [{"index": n, "embedding": [3, 4, 12]} for n in range(len(body["input"]))]
            self.reply({"data": rows[::-1], "usage": {"prompt_tokens": 2 * len(rows)}})
        else:
            self.complete(body)

    def complete(self, body: dict) -> None:
        said = json.dumps(body)
        if "too long" in said:
            text = "This model's maximum context length is 512 tokens. However, you requested 900"
            self.reply({"error": {"message": text, "code": 400}}, 400)
            return
        usage = {"prompt_tokens": prompt_tokens(body), "completion_tokens": 0}
        deltas = script(body)[: body.get("max_tokens") or None]
        cut = len(deltas) < len(script(body))
        reason = "length" if cut else "tool_calls" if body.get("tools") else "stop"
        if not body.get("stream"):
            self.reply({"usage": {**usage, "completion_tokens": len(deltas)}, "choices": []})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self.stream(body, said, deltas, usage, reason)
        except OSError:
            record(left=True)

    def stream(self, body: dict, said: str, deltas: list, usage: dict, reason: str) -> None:
        if "prompt" not in body:
            self.event({"choices": [{"index": 0, "delta": {"role": "assistant"}}], "usage": usage})
        for delta in deltas:
            choice: dict = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
            if "prompt" in body:
                choice["text"] = choice.pop("delta")["content"]
                tokens = {"tokens": [choice["text"]], "token_logprobs": [-0.25]}
                choice["logprobs"] = {**tokens, "top_logprobs": [{"a": -1.0, "b": -0.5}]}
            elif body.get("logprobs"):
                choice["logprobs"] = {"content": [LOGPROB]}
            usage["completion_tokens"] += 1
            self.event({"choices": [choice], "usage": usage})
            if "die" in said:
                os._exit(1)
            if "break" in said:
                self.event({"error": {"message": "the engine broke", "code": 500}})
                return
            while "hang" in said:
                time.sleep(0.01)
                self.event({"choices": [], "usage": usage})
        last: dict = {"index": 0, "delta": {}, "finish_reason": reason, "stop_reason": None}
        if body.get("stop"):
            last |= {"finish_reason": "stop", "stop_reason": body["stop"][0]}
        self.event({"choices": [last]})
        self.event({"choices": [], "usage": usage})
        self.write(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data: dict) -> None:
        self.write(b"data: " + json.dumps(data).encode() + b"\n\n")

    def write(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def reply(self, value: object, status: int = 200, *, raw: bool = False) -> None:
        data = (value if raw else json.dumps(value)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    told = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "COLOUR")}
    pids = [os.getpid()]
    if FAKE.get("orphan"):
        pids.append(subprocess.Popen(["sleep", "600"], start_new_session=True).pid)
    if FAKE.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    record(argv=sys.argv[1:], env=told, pids=pids)
    marker = FAKE.get("short_lived")
    holds = marker is None or Path(marker).exists()
    if marker is not None:
        Path(marker).touch()
    lines = "\n".join(FAKE["log"]) + "\n" if holds and "log" in FAKE else None
    sys.stderr.write(lines or (VLLM if IS_VLLM else SGLANG))
    sys.stderr.flush()
    if holds and "exit" in FAKE:
        sys.exit(FAKE["exit"])
    if holds and FAKE.get("silent"):
        time.sleep(600)
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer((argument("--host"), int(argument("--port"))), Handler).serve_forever()


if __name__ == "__main__":
    main()
