"""A network between a client and a server: a TCP proxy that hands on everything half of the round trip later, and a connection's first bytes a whole one later,
as if the handshake had crossed it too. Nothing is lost and nothing waits for what was before it: a delay, not a limit.

    delay.py PORT-OF-THE-SERVER ROUND-TRIP-MS

Prints the port that it listens at.
"""

import asyncio
import sys


async def pump(reader, writer, seconds, first=0.0):
    loop = asyncio.get_running_loop()
    last = 0.0
    try:
        while piece := await reader.read(256 * 1024):
            # Each a little after the one before it: the loop keeps no order among what is due at the same time.
            last = max(loop.time() + seconds, last + 1e-6, first)
            loop.call_at(last, writer.write, piece)
            # No more than a few pieces of each connection are in memory.
            if writer.transport.get_write_buffer_size() > 4 * 1024 * 1024:
                await writer.drain()
        await asyncio.sleep(max(0.0, last - loop.time()) + seconds)
        if writer.can_write_eof():
            writer.write_eof()
    except (ConnectionError, asyncio.CancelledError):
        writer.close()


async def main(port, round_trip_s):
    async def serve(reader, writer):
        first = asyncio.get_running_loop().time() + 1.5 * round_trip_s
        try:
            there, back = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionError:
            writer.close()
            return
        await asyncio.gather(pump(reader, back, round_trip_s / 2, first), pump(there, writer, round_trip_s / 2), return_exceptions=True)
        back.close()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main(int(sys.argv[1]), float(sys.argv[2]) / 1000))
