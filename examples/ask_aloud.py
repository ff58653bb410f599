"""Ask with a recording in real time, and write down what was said and heard on one time line.

The recording has 24 kHz and one channel, as the protocol sends it; `omni talk` takes any.

omni serve                                    # in another terminal
python examples/ask_aloud.py question.wav conversation.wav
"""

import asyncio
import os
import sys
from pathlib import Path

import soundfile
from omni_streaming.client import Client

URL = os.environ.get("OMNI_URL", "http://127.0.0.1:8000")


async def main(question: Path, conversation: Path) -> None:
    pcm, rate = soundfile.read(question, dtype="int16")
    if rate != 24_000 or pcm.ndim != 1:
        sys.exit(f"{question} has {rate} Hz, {pcm.ndim} channel(s); needed: 24000 Hz, one")
    async with Client(URL, api_key=os.environ.get("OMNI_API_KEY")) as client:
        await client.update(audio={"input": {"turn_detection": {"type": "semantic_vad"}}})
        client.start_microphone()
        client.say(pcm)
        answer = await client.answer()
        await client.heard()
        print(answer.text)
        client.recording.write(conversation)  # the user left, the assistant right


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
