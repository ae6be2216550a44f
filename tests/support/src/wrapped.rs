//! Stores of tests that do some requests themselves and pass the others on.

/// Within an implementation of `Store`: passes requests on to the store in `self.inner`. By their names, and with what the trait uses in scope.
#[macro_export]
macro_rules! pass_on {
    ($($request:ident),*) => { $($crate::pass_on!(@ $request);)* };
    (@ url) => {
        fn url(&self) -> &str {
            self.inner.url()
        }
    };
    (@ list) => {
        fn list(&self, level: Level, from: Option<Txid>) -> BoxFuture<'_, Result<Vec<Listed>, StoreError>> {
            self.inner.list(level, from)
        }
    };
    (@ create) => {
        fn create<'a>(&'a self, name: &'a LtxName, body: Bytes, timestamp: TimestampMs) -> BoxFuture<'a, Result<Created, StoreError>> {
            self.inner.create(name, body, timestamp)
        }
    };
    (@ upload) => {
        fn upload<'a>(&'a self, name: &'a LtxName, timestamp: TimestampMs) -> BoxFuture<'a, Result<Box<dyn Upload>, StoreError>> {
            self.inner.upload(name, timestamp)
        }
    };
    (@ part_size_bytes) => {
        fn part_size_bytes(&self) -> usize {
            self.inner.part_size_bytes()
        }
    };
    (@ get_range) => {
        fn get_range<'a>(&'a self, name: &'a LtxName, range: Range<u64>) -> BoxFuture<'a, Result<Bytes, StoreError>> {
            self.inner.get_range(name, range)
        }
    };
    (@ head) => {
        fn head<'a>(&'a self, name: &'a LtxName) -> BoxFuture<'a, Result<Listed, StoreError>> {
            self.inner.head(name)
        }
    };
    (@ delete) => {
        fn delete<'a>(&'a self, names: &'a [LtxName]) -> BoxFuture<'a, Result<(), StoreError>> {
            self.inner.delete(names)
        }
    };
    (@ creates_are_conditional) => {
        fn creates_are_conditional(&self) -> BoxFuture<'_, Result<bool, StoreError>> {
            self.inner.creates_are_conditional()
        }
    };
}
