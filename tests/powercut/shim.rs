//! A VFS between SQLite and the unix VFS that tells a [`Disk`] what is written, synced, created and deleted.
//!
//! It is the process's default VFS, so that the log does all its file access through it without knowing. Files below a
//! watched directory are recorded and forwarded; all others are opened by the unix VFS alone, as if this one were not there.
//! Shared memory is forwarded and not recorded. Databases are never memory-mapped (methods of version 2), so that every byte
//! passes `xWrite`. Syncs are recorded only: the process lives on, so the real disk need not be waited for.
//!
//! What it cannot see: files that are not opened through SQLite. The log's `log.lock` is made anew at every start, and its
//! own sync of the directory after opening is not credited.
#![allow(unsafe_code, reason = "SQLite calls a VFS through C function pointers")]

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::mem::size_of;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rusqlite::ffi::{
    self, SQLITE_IOCAP_POWERSAFE_OVERWRITE, SQLITE_IOERR, SQLITE_OK, SQLITE_OPEN_CREATE, SQLITE_OPEN_MAIN_JOURNAL,
    SQLITE_OPEN_SUPER_JOURNAL, SQLITE_OPEN_WAL, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs,
};

use crate::disk::Disk;

/// The disks by their directories.
static DISKS: Mutex<BTreeMap<PathBuf, Arc<Disk>>> = Mutex::new(BTreeMap::new());

fn disks() -> MutexGuard<'static, BTreeMap<PathBuf, Arc<Disk>>> {
    DISKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Files of a directory are recorded while this lives, those that are opened meanwhile also after.
pub(crate) struct Watch(PathBuf);

impl Watch {
    /// Records what happens to the files of `dir`.
    pub(crate) fn new(dir: &Path, disk: Arc<Disk>) -> std::io::Result<Watch> {
        real();
        // SQLite resolves links before it opens a file.
        let dir = dir.canonicalize()?;
        disks().insert(dir.clone(), disk);
        Ok(Watch(dir))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        disks().remove(&self.0);
    }
}

/// The disk that a path is on, and its name there.
fn place(path: &Path) -> Option<(Arc<Disk>, &str)> {
    let disk = Arc::clone(disks().get(path.parent()?)?);
    Some((disk, path.file_name()?.to_str()?))
}

/// The wrapped VFS. It is found, and the shim put before it, the first time.
fn real() -> *mut sqlite3_vfs {
    /// A VFS is a table of functions that is never changed once it is registered.
    struct Vfs(*mut sqlite3_vfs);
    // SAFETY: as said, and SQLite itself uses it from every thread.
    unsafe impl Send for Vfs {}
    // SAFETY: as above.
    unsafe impl Sync for Vfs {}
    static REAL: OnceLock<Vfs> = OnceLock::new();
    let vfs = REAL.get_or_init(|| {
        // SAFETY: SQLite may be initialised from any thread; afterwards the default VFS exists and stays.
        let real = unsafe {
            ffi::sqlite3_initialize();
            ffi::sqlite3_vfs_find(ptr::null())
        };
        assert!(!real.is_null(), "SQLite has a default VFS");
        // SAFETY: `real` points to a VFS that lives as long as the process.
        let mut shim = unsafe { *real };
        shim.szOsFile += size_of::<File>() as c_int;
        shim.zName = c"powercut".as_ptr();
        shim.pNext = ptr::null_mut();
        shim.xOpen = Some(open);
        shim.xDelete = Some(delete);
        // SAFETY: the shim is never freed. Its other functions are the unix VFS's own, which use of a VFS only what was
        // copied: `pAppData` and `mxPathname`.
        let registered = unsafe { ffi::sqlite3_vfs_register(Box::leak(Box::new(shim)), 1) };
        assert_eq!(registered, SQLITE_OK, "the shim is the default VFS");
        Vfs(real)
    });
    vfs.0
}

/// A recorded file, in memory that SQLite gave; the wrapped file follows it. Both are aligned to 8 bytes, as SQLite's are.
#[repr(C)]
struct File {
    base: sqlite3_file,
    recorded: *mut Recorded,
}

struct Recorded {
    disk: Arc<Disk>,
    name: String,
    content: usize,
    /// The unix VFS syncs the directory with the first sync of a new journal or write-ahead log.
    directory_sync_due: bool,
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// The wrapped file.
fn real_file(file: *mut sqlite3_file) -> *mut sqlite3_file {
    file.cast::<File>().wrapping_add(1).cast()
}

/// Calls a method of the wrapped file, which has it or fails.
macro_rules! forward {
    ($file:expr, $method:ident $(, $argument:expr)*) => {{
        let real = real_file($file);
        // SAFETY: SQLite passes a file that `open` has opened and `close` has not closed, so the wrapped one is open too;
        // the arguments are SQLite's own.
        match unsafe { (*(*real).pMethods).$method } {
            // SAFETY: as above.
            Some(method) => unsafe { method(real $(, $argument)*) },
            None => SQLITE_IOERR,
        }
    }};
}

/// The record of a file that is open.
///
/// # Safety
/// `file` is one that `open` has opened and `close` has not closed, and SQLite uses it from one thread at a time.
unsafe fn recorded<'f>(file: *mut sqlite3_file) -> &'f mut Recorded {
    // SAFETY: `open` has put a box there that only `close` takes back.
    unsafe { &mut *(*file.cast::<File>()).recorded }
}

unsafe extern "C" fn open(
    _: *mut sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: a name, if there is one, ends with a zero byte and lives until the file is closed.
    let path = (!name.is_null()).then(|| Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes())));
    let place = path.and_then(place);
    let target = if place.is_some() { real_file(file) } else { file };
    let real = real();
    // SAFETY: SQLite gave `szOsFile` bytes at `file`: enough for the shim's part and a file of the wrapped VFS.
    let result = match unsafe { (*real).xOpen } {
        // SAFETY: as above; the name is passed on as it came, with the parameters that follow it.
        Some(open) => unsafe { open(real, name, target, flags, out_flags) },
        None => SQLITE_IOERR,
    };
    let Some((disk, name)) = place else { return result };
    let journal = SQLITE_OPEN_WAL | SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_SUPER_JOURNAL;
    let opened = result == SQLITE_OK;
    let recorded = opened.then(|| Recorded {
        content: disk.open(name),
        name: name.to_owned(),
        disk,
        directory_sync_due: flags & SQLITE_OPEN_CREATE != 0 && flags & journal != 0,
    });
    let base = sqlite3_file { pMethods: if opened { &raw const METHODS } else { ptr::null() } };
    let recorded = recorded.map_or(ptr::null_mut(), |recorded| Box::into_raw(Box::new(recorded)));
    // SAFETY: the memory is SQLite's for this file; without methods it will not be closed.
    unsafe { file.cast::<File>().write(File { base, recorded }) };
    result
}

unsafe extern "C" fn delete(_: *mut sqlite3_vfs, name: *const c_char, sync_directory: c_int) -> c_int {
    let real = real();
    // SAFETY: the wrapped VFS is there for ever.
    let result = match unsafe { (*real).xDelete } {
        // SAFETY: the arguments are SQLite's own.
        Some(delete) => unsafe { delete(real, name, 0) },
        None => SQLITE_IOERR,
    };
    // SAFETY: a name ends with a zero byte.
    let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes()));
    if result == SQLITE_OK
        && let Some((disk, name)) = place(path)
    {
        disk.delete(name, sync_directory & 1 != 0);
    }
    result
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: `open` made the box, and SQLite closes a file once.
    drop(unsafe { Box::from_raw((*file.cast::<File>()).recorded) });
    forward!(file, xClose)
}

unsafe extern "C" fn write(file: *mut sqlite3_file, bytes: *const c_void, length: c_int, at: sqlite3_int64) -> c_int {
    let result = forward!(file, xWrite, bytes, length, at);
    if result == SQLITE_OK {
        // SAFETY: SQLite passes so many bytes, and an open file.
        let (recorded, bytes) = unsafe { (recorded(file), slice::from_raw_parts(bytes.cast::<u8>(), length as usize)) };
        recorded.disk.write(&recorded.name, recorded.content, at as usize, bytes);
    }
    result
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, size: sqlite3_int64) -> c_int {
    let result = forward!(file, xTruncate, size);
    if result == SQLITE_OK {
        // SAFETY: SQLite passes an open file.
        let recorded = unsafe { recorded(file) };
        recorded.disk.truncate(recorded.content, size as usize);
    }
    result
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, _: c_int) -> c_int {
    // SAFETY: SQLite passes an open file.
    let recorded = unsafe { recorded(file) };
    let and_directory = std::mem::take(&mut recorded.directory_sync_due);
    recorded.disk.sync(&recorded.name, recorded.content, and_directory);
    SQLITE_OK
}

unsafe extern "C" fn device_characteristics(file: *mut sqlite3_file) -> c_int {
    let real = forward!(file, xDeviceCharacteristics);
    // SAFETY: SQLite passes an open file.
    let powersafe = unsafe { recorded(file) }.disk.declares_powersafe;
    if powersafe { real } else { real & !SQLITE_IOCAP_POWERSAFE_OVERWRITE }
}

unsafe extern "C" fn read(file: *mut sqlite3_file, to: *mut c_void, length: c_int, at: sqlite3_int64) -> c_int {
    forward!(file, xRead, to, length, at)
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, size: *mut sqlite3_int64) -> c_int {
    forward!(file, xFileSize, size)
}

unsafe extern "C" fn lock(file: *mut sqlite3_file, level: c_int) -> c_int {
    forward!(file, xLock, level)
}

unsafe extern "C" fn unlock(file: *mut sqlite3_file, level: c_int) -> c_int {
    forward!(file, xUnlock, level)
}

unsafe extern "C" fn check_reserved_lock(file: *mut sqlite3_file, held: *mut c_int) -> c_int {
    forward!(file, xCheckReservedLock, held)
}

unsafe extern "C" fn file_control(file: *mut sqlite3_file, operation: c_int, argument: *mut c_void) -> c_int {
    forward!(file, xFileControl, operation, argument)
}

unsafe extern "C" fn sector_size(file: *mut sqlite3_file) -> c_int {
    forward!(file, xSectorSize)
}

unsafe extern "C" fn shm_map(
    file: *mut sqlite3_file,
    region: c_int,
    size: c_int,
    extend: c_int,
    to: *mut *mut c_void,
) -> c_int {
    forward!(file, xShmMap, region, size, extend, to)
}

unsafe extern "C" fn shm_lock(file: *mut sqlite3_file, offset: c_int, count: c_int, flags: c_int) -> c_int {
    forward!(file, xShmLock, offset, count, flags)
}

unsafe extern "C" fn shm_barrier(file: *mut sqlite3_file) {
    let real = real_file(file);
    // SAFETY: SQLite passes an open file, so the wrapped one is open too.
    if let Some(barrier) = unsafe { (*(*real).pMethods).xShmBarrier } {
        // SAFETY: as above.
        unsafe { barrier(real) }
    }
}

unsafe extern "C" fn shm_unmap(file: *mut sqlite3_file, delete: c_int) -> c_int {
    forward!(file, xShmUnmap, delete)
}
