// Replicates a database from Node's own SQLite (node:sqlite, from Node 22.13 on): a few commits, a wait until the bucket has them, the status.
//
// usage: node node_app.mjs REPLICA_URL [DATABASE]
//
// The extension is dist/replicated.so of this repository (`make build`), or REPLICATED_EXTENSION.

import path from 'node:path';
import { DatabaseSync } from 'node:sqlite';

const extension = process.env.REPLICATED_EXTENSION ?? path.join(import.meta.dirname, '../dist/replicated.so');
// A variable that begins with REPLICATED_ and is no option of ours refuses the open.
delete process.env.REPLICATED_EXTENSION;

const [replica, database = 'app.db'] = process.argv.slice(2);
if (replica === undefined) {
  console.error('usage: node node_app.mjs REPLICA_URL [DATABASE]');
  process.exit(2);
}

// Once a process, by a connection of its own: it registers the VFS for those that follow.
const loader = new DatabaseSync(':memory:', { allowExtension: true });
loader.loadExtension(extension);
loader.close();

const file = path.resolve(database).split('/').map(encodeURIComponent).join('/');
const db = new DatabaseSync(`file:${file}?vfs=replicated&replica=${encodeURIComponent(replica)}`);
db.exec('PRAGMA journal_mode=wal');
db.exec('CREATE TABLE IF NOT EXISTS notes(id INTEGER PRIMARY KEY, text TEXT)');
const insert = db.prepare('INSERT INTO notes(text) VALUES (?)');
for (const text of ['one from Node', 'two from Node']) insert.run(text);

console.log('everything is in the bucket, up to TXID', Object.values(db.prepare('PRAGMA replicated_sync').get())[0]);
console.log(Object.values(db.prepare('PRAGMA replicated_status').get())[0]);
db.close();
