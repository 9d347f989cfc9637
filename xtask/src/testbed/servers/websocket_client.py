"""Says messages of many sizes to a WebSocket server, and checks the answers."""
import asyncio
import sys

import websockets


async def main():
    async with websockets.connect(sys.argv[1], max_size=None, open_timeout=30) as socket:
        for size in (1, 100, 70_000, 1 << 20):
            await socket.send("x" * size)
            answer = await asyncio.wait_for(socket.recv(), 15)
            assert answer == "X" * size, f"{size}: {len(answer)} came back"
        print("4 messages came back")


asyncio.run(main())
