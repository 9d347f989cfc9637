"""A server of HTTP/1.1 that makes no use of flow control: `/endless` is answered without end, `/sink` is never read, all
else is answered with `well`. endless_server.py PORT"""
import asyncio
import socket
import sys

BLOCK = b"10000\r\n" + b"e" * 65536 + b"\r\n"


async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if b" /endless " in head:
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                while True:
                    writer.write(BLOCK)
                    await writer.drain()
            if b" /sink " in head:
                await asyncio.sleep(600)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwell\n")
            await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
        writer.close()


async def main():
    address = ("::", int(sys.argv[1]))
    listener = socket.create_server(address, family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
    server = await asyncio.start_server(serve, sock=listener, limit=65536)
    await server.serve_forever()


asyncio.run(main())
