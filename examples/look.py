"""Ask a model about a picture: ``python look.py PICTURE QUESTION --model MODEL``."""

from __future__ import annotations

import argparse
import base64
import mimetypes
import sys
from pathlib import Path

import openai


def main() -> None:
    """Print the answer as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("question")
    parser.add_argument("--model", required=True)
    parser.add_argument("--url", default="http://127.0.0.1:31313/v1")
    parser.add_argument("--key", default="any-key")
    given = parser.parse_args()

    kind, _ = mimetypes.guess_type(given.picture)
    data = base64.b64encode(given.picture.read_bytes()).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}
    question = {"type": "text", "text": given.question}
    with openai.OpenAI(base_url=given.url, api_key=given.key) as client:
        chunks = client.chat.completions.create(
            model=given.model,
            messages=[{"role": "user", "content": [image, question]}],
            stream=True,
        )
        for chunk in chunks:
            sys.stdout.write(chunk.choices[0].delta.content or "")
            sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
