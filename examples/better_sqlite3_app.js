// Replicates a database from Node through better-sqlite3, which takes no URIs: the VFS becomes the default one.
//
// usage: node better_sqlite3_app.js REPLICA_URL [DATABASE]
//
// The extension is dist/replicated.so of this repository (`make build`), or REPLICATED_EXTENSION.

const path = require('node:path');
const Database = require('better-sqlite3');

const extension = process.env.REPLICATED_EXTENSION ?? path.join(__dirname, '../dist/replicated.so');
// A variable that begins with REPLICATED_ and is no option of ours refuses the open.
delete process.env.REPLICATED_EXTENSION;

const [replica, database = 'app.db'] = process.argv.slice(2);
if (replica === undefined) {
  console.error('usage: node better_sqlite3_app.js REPLICA_URL [DATABASE]');
  process.exit(2);
}

// For every database that the process opens from here on. Where it opens several: s3://bucket/{name}, or a file (REPLICATED_CONFIG).
// These may as well be in the environment that the process is started with.
process.env.REPLICATED_DEFAULT = '1';
process.env.REPLICATED_REPLICA = replica;
const loader = new Database(':memory:');
loader.loadExtension(extension);
loader.close();

const db = new Database(database);
db.pragma('journal_mode = wal');
db.exec('CREATE TABLE IF NOT EXISTS notes(id INTEGER PRIMARY KEY, text TEXT)');
const insert = db.prepare('INSERT INTO notes(text) VALUES (?)');
for (const text of ['one from better-sqlite3', 'two from better-sqlite3']) insert.run(text);

console.log('everything is in the bucket, up to TXID', db.pragma('replicated_sync', { simple: true }));
console.log(db.pragma('replicated_status', { simple: true }));
db.close();
