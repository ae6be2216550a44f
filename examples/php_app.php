<?php
// Replicates a database from PHP by PDO: a few commits, a wait until the bucket has them, the status.
//
// usage: php -d sqlite3.extension_dir=DIRECTORY_OF_THE_EXTENSION php_app.php REPLICA_URL [DATABASE]
//
// PDO cannot load extensions before PHP 8.4; the class SQLite3 can, and both use one SQLite. The directory is a setting that only php.ini
// and the command line can make; the extension's file in it is replicated.so.

if ($argc < 2) {
    fwrite(STDERR, "usage: php -d sqlite3.extension_dir=DIRECTORY php_app.php REPLICA_URL [DATABASE]\n");
    exit(2);
}
$replica = $argv[1];
$database = $argv[2] ?? 'app.db';

// Once a process: it registers the VFS for all connections that follow. Under php-fpm this belongs into the file of auto_prepend_file; loading again does no harm.
$loader = new SQLite3(':memory:');
if (!$loader->loadExtension('replicated.so')) {
    exit(1); // PHP has said why.
}
$loader->close();

$file = implode('/', array_map('rawurlencode', explode('/', $database)));
$db = new PDO("sqlite:file:$file?vfs=replicated&replica=" . rawurlencode($replica));
$db->exec('PRAGMA journal_mode=wal');
$db->exec('CREATE TABLE IF NOT EXISTS notes(id INTEGER PRIMARY KEY, text TEXT)');
$insert = $db->prepare('INSERT INTO notes(text) VALUES (?)');
foreach (['one from PHP', 'two from PHP'] as $text) {
    $insert->execute([$text]);
}

echo 'everything is in the bucket, up to TXID ', $db->query('PRAGMA replicated_sync')->fetchColumn(), "\n";
echo $db->query('PRAGMA replicated_status')->fetchColumn(), "\n";
// Statements hold the connection: without them it is closed here.
$insert = null;
$db = null;
