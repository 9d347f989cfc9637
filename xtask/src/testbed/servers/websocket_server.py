"""A WebSocket server that answers each message with the same in upper case."""
import asyncio
import sys

import websockets


async def answer(socket, *_):
    async for message in socket:
        await socket.send(message.upper())


async def main():
    async with websockets.serve(answer, None, int(sys.argv[1])):
        await asyncio.Future()


asyncio.run(main())
