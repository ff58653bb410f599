"""Let the model call a function of yours and speak about what it returned.

omni serve                                    # in another terminal
python examples/call_a_tool.py "What is the weather in Rome?"
"""

import asyncio
import json
import os
import sys

from omni_streaming.client import Client

URL = os.environ.get("OMNI_URL", "http://127.0.0.1:8000")
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def get_weather(city: str = "") -> str:
    return f"It is sunny in {city}, 21 degrees Celsius."


async def main(question: str) -> None:
    async with Client(URL, api_key=os.environ.get("OMNI_API_KEY")) as client:
        await client.update(tools=[WEATHER], output_modalities=["text"])
        await client.write(question)
        answer = await client.answer()
        for call in answer.calls:
            print(f"-> {call['name']}({call['arguments']})")
            output = get_weather(**json.loads(call["arguments"]))
            item = {"type": "function_call_output", "call_id": call["call_id"], "output": output}
            await client.send("conversation.item.create", item=item)
            seen = len(client.events)
            await client.send("response.create")
            answer = await client.answer(after=seen)
        print(answer.text)


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "What is the weather in Paris right now?"))
