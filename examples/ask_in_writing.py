"""Ask a question in writing with the official openai client and print the answer as it comes.

omni serve                                    # in another terminal
python examples/ask_in_writing.py "What is the capital of Japan?"
"""

import asyncio
import os
import sys

from openai import AsyncOpenAI

URL = os.environ.get("OMNI_URL", "http://127.0.0.1:8000")


async def main(question: str) -> None:
    client = AsyncOpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("OMNI_API_KEY", "none"))
    async with client, client.realtime.connect(model="default") as connection:
        await connection.session.update(
            session={"type": "realtime", "output_modalities": ["text"]},
        )
        content = [{"type": "input_text", "text": question}]
        await connection.conversation.item.create(
            item={"type": "message", "role": "user", "content": content},
        )
        await connection.response.create()
        async for event in connection:
            if event.type == "response.output_text.delta":
                print(event.delta, end="", flush=True)
            elif event.type == "response.done":
                print()
                break


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "What is the capital of France?"))
